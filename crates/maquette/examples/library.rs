//! The README's example: a letter-drawing VAE, trained and sampled in twenty lines.

use maquette::burn::optim::{AdamConfig, GradientsParams};
use maquette::burn::prelude::*;
use maquette::data::{Normalization, Order, Split, glyphs};
use maquette::models::vae::VaeConfig;
use maquette::rng::{Stream, normal, rng};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let images = glyphs::glyphs(Split::Train, 0, &glyphs::GlyphConfig::default())?;
    let order = Order::new(images.len(), 64, 0)?;
    let device = Device::flex().autodiff();
    let mut model = VaeConfig::default().init(&device, &mut rng(0, Stream::Init, 0));
    let mut optimizer = AdamConfig::new().init();
    for step in 0..50 {
        let pixels = images.batch(&order.indices(step), &Normalization::MinMax, None);
        let x = Tensor::from_data(TensorData::new(pixels, [64, 1, 28, 28]), &device);
        let noise = TensorData::new(normal(&mut rng(0, Stream::Noise, step), 64 * 20), [64, 20]);
        let loss = model.loss(x, Tensor::from_data(noise, &device)).total;
        println!(
            "step {step}: {:.1} nats per image",
            loss.clone().into_scalar::<f32>()
        );
        let grads = GradientsParams::from_grads(loss.backward(), &model);
        model = optimizer.step(1e-3, model, grads);
    }
    Ok(())
}
