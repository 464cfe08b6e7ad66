//! `--device`: from a name to a Burn device.

use burn::tensor::Device;

use crate::errors::Usage;

/// The devices this build can name, for help and errors.
pub(crate) const DEVICES: &[&str] = &[
    "cpu",
    #[cfg(feature = "cuda")]
    "cuda",
    #[cfg(feature = "wgpu")]
    "wgpu",
];

/// Parse `cpu`, `cuda[:N]` or `wgpu[:N]`.
///
/// # Errors
/// Unknown names, a bad index, and back ends that this build leaves out.
pub(crate) fn parse(text: &str) -> Result<Device, Usage> {
    let (name, index) = match text.split_once(':') {
        Some((name, index)) => (
            name,
            index.parse::<usize>().map_err(|_| {
                Usage::new(
                    format!("--device {text}: `{index}` is not a number"),
                    "write for example cuda:0",
                )
            })?,
        ),
        None => (text, 0),
    };
    match name {
        "cpu" if index == 0 => Ok(Device::flex()),
        "cpu" => Err(Usage::new(
            format!("--device {text}: there is one CPU device"),
            "write --device cpu",
        )),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(index)),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(burn::tensor::DeviceKind::DiscreteGpu(index))),
        "cuda" | "wgpu" => Err(Usage::new(
            format!("--device {text}: this build has no {name}"),
            format!("build it in with `cargo build --release --features {name}`"),
        )),
        _ => Err(Usage::new(
            format!("--device {text}: no such device"),
            format!("this build knows {}", DEVICES.join(", ")),
        )),
    }
}
