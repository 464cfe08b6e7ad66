//! Labels: what the players know of the class that is asked for.

use burn::tensor::{Int, Tensor};
use serde::{Deserialize, Serialize};

/// How the critic is told the label. The generator always sees it beside its noise (Mirza and Osindero
/// 2014, arXiv:1411.1784).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Conditioning {
    /// A channel per class beside the image's, 1 throughout or 0 (Mirza and Osindero 2014).
    Concat,
    /// It is not told, but names the class itself, and both players want it named right (Odena et al.
    /// 2017, AC-GAN, arXiv:1610.09585).
    Auxiliary,
    /// The score has the product of its features with a vector per class added (Miyato and Koyama 2018,
    /// arXiv:1802.05637).
    Projection,
}

/// Labels as rows of zeros with a one, `[batch, n_classes]`.
pub fn one_hot(labels: Tensor<1, Int>, n_classes: usize) -> Tensor<2> {
    labels.one_hot::<2>(n_classes).float()
}

/// A channel per class beside an image's own.
///
/// # Shapes
/// - x: `[batch, channels, height, width]`
/// - labels: `[batch, n_classes]`
/// - output: `[batch, channels + n_classes, height, width]`
pub(super) fn beside(x: Tensor<4>, labels: Tensor<2>) -> Tensor<4> {
    let [batch, _, height, width] = x.dims();
    let n_classes = labels.dims()[1];
    let planes = labels.reshape([batch, n_classes, 1, 1]);
    Tensor::cat(vec![x, planes.expand([batch, n_classes, height, width])], 1)
}
