//! What several test modules share.

use std::path::PathBuf;

/// A folder or file of the shared data; `None`, with a line that says so, where it is missing.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("MAQUETTE_TEST_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")),
        PathBuf::from,
    );
    let path = root.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is missing", path.display());
        return None;
    }
    Some(path)
}
