//! `maquette doctor`: what this machine offers, and what to do where something is missing.

use maquette::kernels::roofline;
use serde_json::json;
use sysinfo::System;

use super::device::DEVICES;
use crate::args::DoctorArgs;
use crate::errors::failed;
use crate::output::Output;

/// The SIMD extensions that the kernels choose from, as found at run time.
fn simd() -> Vec<&'static str> {
    let mut found = Vec::new();
    macro_rules! probe {
        ($detected:ident: $($name:tt),*) => {
            $(if std::arch::$detected!($name) { found.push($name); })*
        };
    }
    #[cfg(target_arch = "x86_64")]
    probe!(
        is_x86_feature_detected: "sse4.2", "avx", "fma", "avx2", "avxvnni", "avx512f", "avx512vnni", "avx512bf16"
    );
    #[cfg(target_arch = "aarch64")]
    probe!(is_aarch64_feature_detected: "neon", "dotprod");
    found
}

/// Print the findings.
pub(crate) fn run(_args: &DoctorArgs, output: Output) -> miette::Result<()> {
    let mut system = System::new().map_err(failed)?;
    system.refresh_memory();
    system.refresh_cpu_all();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let cpu = system
        .cpus()
        .first()
        .map_or("unknown", |cpu| cpu.brand())
        .to_owned();
    let gib = |bytes: u64| (bytes as f64 / (1u64 << 30) as f64 * 10.0).round() / 10.0;
    let (total, available) = (gib(system.total_memory()), gib(system.available_memory()));
    let os = System::long_os_version().unwrap_or_else(|_| std::env::consts::OS.to_owned());
    let data = std::env::var_os("MAQUETTE_DATA").map(std::path::PathBuf::from);
    let data = data.map_or(
        "not set: pass --data, or set MAQUETTE_DATA to a folder of data sets".to_owned(),
        |path| {
            let state = if path.is_dir() {
                ""
            } else {
                " (no such folder)"
            };
            format!("{}{state}", path.display())
        },
    );
    let runs = std::fs::read_dir("runs").map_or(0, |entries| {
        entries
            .flatten()
            .filter(|e| e.path().join("recipe.toml").is_file())
            .count()
    });
    let simd = simd();

    output.line(format_args!(
        "maquette   {} ({} {})",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::OS,
        std::env::consts::ARCH
    ));
    output.line(format_args!("burn       {}", BURN));
    output.line(format_args!("system     {os}"));
    output.line(format_args!("processor  {cpu}, {cores} threads"));
    output.line(format_args!("simd       {}", simd.join(" ")));
    let bf16 = match roofline::multiplies_bf16() {
        true => "multiplied in pairs",
        false => "rounded, then multiplied as f32: no faster than f32 (no AVX512-BF16)",
    };
    output.line(format_args!("bf16       {bf16}"));
    output.line(format_args!("memory     {available} of {total} GiB free"));
    output.line(format_args!("devices    {}", DEVICES.join(", ")));
    for missing in ["cuda", "wgpu"]
        .iter()
        .filter(|name| !DEVICES.contains(name))
    {
        output.line(format_args!(
            "           {missing}: not in this build (cargo build --release --features {missing})"
        ));
    }
    output.line(format_args!("data       {data}"));
    output.line(format_args!("runs       {runs} in ./runs"));
    output.object(&json!({
        "version": env!("CARGO_PKG_VERSION"), "burn": BURN, "os": os, "arch": std::env::consts::ARCH,
        "processor": cpu, "threads": cores, "simd": simd, "bf16": bf16,
        "memory_gib": total, "memory_available_gib": available,
        "devices": DEVICES, "data": data, "runs": runs,
    }));
    Ok(())
}

/// The minor release that the workspace pins.
const BURN: &str = "0.22";
