//! `--threads`: how many cores the tensor kernels use.

use crate::errors::Usage;

/// Limit the worker threads of the whole process; must come before the first tensor.
pub(crate) fn limit(threads: Option<u16>) -> miette::Result<()> {
    let Some(threads) = threads else {
        return Ok(());
    };
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads.into())
        .build_global()
        .map_err(|error| {
            Usage::new(
                format!("--threads {threads}: {error}"),
                "leave it out to use every core",
            )
            .into()
        })
}
