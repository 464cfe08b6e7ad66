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

/// Parse `cpu`, `cuda[:N]` or `wgpu[:N]`. Without a number wgpu takes the best device there is; with one,
/// that of the graphics cards.
///
/// # Errors
/// Unknown names, a bad index, back ends that this build leaves out, and devices that do not answer.
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
        "cuda" => answering(text, Device::cuda(index)),
        #[cfg(feature = "wgpu")]
        "wgpu" => {
            use burn::tensor::DeviceKind;
            let kind = match text.contains(':') {
                true => DeviceKind::DiscreteGpu(index),
                false => DeviceKind::DefaultDevice,
            };
            answering(text, Device::wgpu(kind))
        }
        #[allow(unreachable_patterns)] // where the build has both
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

/// The device, once it has held a number: a back end that finds none panics, on a thread of its own.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn answering(text: &str, device: Device) -> Result<Device, Usage> {
    use std::panic;
    use std::sync::{Arc, Mutex, PoisonError};

    let said = Arc::new(Mutex::new(None));
    let hook = panic::take_hook();
    let first = said.clone();
    panic::set_hook(Box::new(move |panic| {
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| panic.payload_as_str().unwrap_or_default().to_owned());
    }));
    let answered = panic::catch_unwind(|| {
        let one = burn::tensor::Tensor::<1>::ones([1], &device);
        one.into_data().iter::<f32>().next() == Some(1.0)
    });
    panic::set_hook(hook);
    if let Ok(true) = answered {
        return Ok(device);
    }
    let why = said.lock().unwrap_or_else(PoisonError::into_inner).take();
    Err(Usage::new(
        format!(
            "--device {text}: it does not answer: {}",
            why.unwrap_or_else(|| "it does not keep numbers".into())
        ),
        "check its driver, or write --device cpu; `maquette doctor` lists what this build knows",
    ))
}
