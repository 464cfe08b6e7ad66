//! A mixture of experts: every token passes a few of many MLPs (Shazeer et al. 2017,
//! arXiv:1701.06538), chosen and weighted as in Mixtral (Jiang et al. 2024, arXiv:2401.04088).

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor, TensorData, activation::softmax},
};

use crate::linear::{Linear, LinearConfig};
use crate::mlp::{Mlp, MlpConfig};

/// Configuration of a [`Moe`].
#[derive(Debug, Clone, Copy)]
pub struct MoeConfig {
    /// One expert.
    pub expert: MlpConfig,
    /// How many there are.
    pub n_experts: usize,
    /// How many a token passes; at most `n_experts`.
    pub n_active: usize,
}

impl MoeConfig {
    /// A layer; draw its weights with [`crate::init::initialise`].
    pub fn init(&self, device: &Device) -> Moe {
        let router = LinearConfig::new(self.expert.d_model, self.n_experts).with_bias(false);
        Moe {
            router: router.init(device),
            experts: (0..self.n_experts)
                .map(|_| self.expert.init(device))
                .collect(),
            n_active: self.n_active,
        }
    }
}

/// Experts and the router that chooses among them.
#[derive(Module, Debug)]
pub struct Moe {
    /// `[d_model, n_experts]`.
    pub router: Linear,
    /// The MLPs.
    pub experts: Vec<Mlp>,
    n_active: usize,
}

/// How a [`Moe`] distributed the tokens of one call.
#[derive(Debug, Clone)]
pub struct Routing {
    /// Share of all choices that fell on each expert; they sum to one.
    pub shares: Vec<f32>,
    /// `n_experts sum_e f_e P_e`, where `f_e` is the mean number of choices of expert `e` by a token
    /// and `P_e` its mean probability: at least `n_active`, which is an even load (Fedus et al.
    /// 2021, arXiv:2101.03961, equations 4 to 6), `[1]`.
    pub balance: Tensor<1>,
    /// Mean square of the logarithm of the sum of exponentials of the router's logits, which keeps
    /// them small (Zoph et al. 2022, arXiv:2202.08906, equation 5), `[1]`.
    pub z: Tensor<1>,
}

impl Moe {
    /// The experts' outputs, weighted by the router's probabilities of the chosen ones, and how
    /// the tokens were distributed.
    ///
    /// # Shapes
    /// - input, output: `[batch, seq, d_model]`
    pub fn forward(&self, x: Tensor<3>) -> (Tensor<3>, Routing) {
        let shape = x.dims();
        let [batch, seq, d_model] = shape;
        let (tokens, device) = (batch * seq, x.device());
        let n_experts = self.experts.len();
        let x = x.reshape([tokens, d_model]);
        // 1. Who goes where.
        let logits = self.router.forward(x.clone());
        let probabilities = softmax(logits.clone(), 1);
        let plan = Plan::of(&probabilities, self.n_active);
        // 2. Weights: the chosen probabilities, made to sum to one.
        let mask = TensorData::new(plan.mask, [tokens, n_experts]);
        let kept = probabilities.clone() * Tensor::from_data(mask, &device);
        let weights = kept.clone() / kept.sum_dim(1);
        // 3. Each expert on its tokens.
        let indices = |rows: &[i32]| {
            Tensor::<1, Int>::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &device)
        };
        let busy = plan
            .rows
            .iter()
            .enumerate()
            .filter(|(_, rows)| !rows.is_empty());
        let made = busy.map(|(expert, rows)| {
            let rows = indices(rows);
            let out = self.experts[expert].forward(x.clone().select(0, rows.clone()));
            out * weights.clone().narrow(1, expert, 1).select(0, rows)
        });
        let made = Tensor::cat(made.collect(), 0);
        // 4. Back in order: the sum of what a token's experts made.
        let places = plan
            .places
            .iter()
            .map(|places| made.clone().select(0, indices(places)));
        let out = places.reduce(|sum, part| sum + part);
        let out = out.unwrap_or_else(|| x.zeros_like());
        // 5. The two losses of the router.
        let counts: Vec<f32> = plan.rows.iter().map(|rows| rows.len() as f32).collect();
        let choices = (tokens * self.n_active) as f32;
        let shares: Vec<f32> = counts.iter().map(|count| count / choices).collect();
        let frequency: Vec<f32> = counts.iter().map(|count| count / tokens as f32).collect();
        let frequency = Tensor::from_data(TensorData::new(frequency, [1, n_experts]), &device);
        let mean = probabilities.mean_dim(0);
        let largest = logits.clone().detach().max_dim(1);
        let sum = (logits - largest.clone()).exp().sum_dim(1).log() + largest;
        let routing = Routing {
            shares,
            balance: (mean * frequency).sum() * n_experts as f64,
            z: sum.square().mean(),
        };
        (out.reshape(shape), routing)
    }
}

/// How often each expert of each block was chosen, over many calls.
#[derive(Debug, Clone, Default)]
pub struct Load(Vec<Vec<f64>>);

impl Load {
    /// An expert that gets less than this share of an even load is idle.
    const IDLE: f64 = 0.1;

    /// Counts one call: a routing for each block, over so many tokens.
    pub fn add(&mut self, routing: &[Routing], tokens: usize) {
        self.0.resize(routing.len(), Vec::new());
        for (block, routing) in self.0.iter_mut().zip(routing) {
            block.resize(routing.shares.len(), 0.0);
            for (sum, share) in block.iter_mut().zip(&routing.shares) {
                *sum += f64::from(*share) * tokens as f64;
            }
        }
    }

    /// The share of all choices that fell on each expert of a block.
    pub fn shares(&self) -> impl Iterator<Item = Vec<f64>> + '_ {
        self.0.iter().map(|block| {
            let total: f64 = block.iter().sum();
            block.iter().map(|count| count / total).collect()
        })
    }

    /// How many experts of each block there would be with this entropy and an even load.
    fn effective(&self) -> impl Iterator<Item = f64> + '_ {
        self.shares().map(|shares| {
            let busy = shares.iter().filter(|share| **share > 0.0);
            busy.map(|share| -share * share.ln()).sum::<f64>().exp()
        })
    }

    /// The share of the experts that is in use, by the entropy of their load, mean over the blocks;
    /// 1 when it is even, `None` without experts.
    pub fn used(&self) -> Option<f64> {
        let shares = self
            .effective()
            .zip(&self.0)
            .map(|(n, block)| n / block.len() as f64);
        (!self.0.is_empty()).then(|| shares.sum::<f64>() / self.0.len() as f64)
    }

    /// How many experts get next to nothing, in all blocks.
    pub fn idle(&self) -> usize {
        let idle = |shares: Vec<f64>| {
            let least = Self::IDLE / shares.len() as f64;
            shares.iter().filter(|share| **share < least).count()
        };
        self.shares().map(idle).sum()
    }

    /// The alarm: names the blocks whose router has collapsed, that is, where by the entropy of the
    /// load no more than half of the experts are in use. `None` while there is none.
    pub fn collapse(&self) -> Option<String> {
        let blocks = self.effective().zip(&self.0).enumerate();
        let collapsed = blocks.filter(|(_, (n, block))| *n <= block.len() as f64 / 2.0);
        let named: Vec<String> = collapsed
            .map(|(at, (n, block))| {
                format!(
                    "block {} uses {n:.1} of its {} experts",
                    at + 1,
                    block.len()
                )
            })
            .collect();
        (!named.is_empty()).then(|| {
            format!(
                "router collapse: {}; raise the weight of the load-balance loss (experts.balance) or \
                 lower the learning rate",
                named.join(", ")
            )
        })
    }
}

/// Which token goes to which expert.
struct Plan {
    /// 1 where a token goes to an expert, `[tokens, n_experts]`.
    mask: Vec<f32>,
    /// The tokens of each expert.
    rows: Vec<Vec<i32>>,
    /// Where each token's outputs stand when those of all experts are laid end to end: one list per
    /// choice.
    places: Vec<Vec<i32>>,
}

impl Plan {
    fn of(probabilities: &Tensor<2>, n_active: usize) -> Self {
        let [tokens, n_experts] = probabilities.dims();
        let values: Vec<f32> = probabilities.clone().into_data().iter::<f32>().collect();
        let mut mask = vec![0.0; tokens * n_experts];
        let mut rows = vec![Vec::new(); n_experts];
        let mut chosen = Vec::with_capacity(tokens * n_active);
        let mut order: Vec<usize> = Vec::with_capacity(n_experts);
        for (token, row) in values.chunks_exact(n_experts).enumerate() {
            order.clear();
            order.extend(0..n_experts);
            // Of equals the first, on every machine.
            order.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
            for &expert in &order[..n_active] {
                mask[token * n_experts + expert] = 1.0;
                chosen.push((expert, rows[expert].len()));
                rows[expert].push(token as i32);
            }
        }
        let starts: Vec<usize> = rows
            .iter()
            .scan(0, |end, rows: &Vec<i32>| {
                let start = *end;
                *end += rows.len();
                Some(start)
            })
            .collect();
        let place = |&(expert, at): &(usize, usize)| (starts[expert] + at) as i32;
        let places = (0..n_active)
            .map(|choice| {
                chosen
                    .iter()
                    .skip(choice)
                    .step_by(n_active)
                    .map(place)
                    .collect()
            })
            .collect();
        Self { mask, rows, places }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InitScheme, MlpKind, init::initialise};
    use maquette_rng::{Stream, normal, rng};

    fn layer(n_experts: usize, n_active: usize, device: &Device) -> Moe {
        let config = MoeConfig {
            expert: MlpConfig {
                kind: MlpKind::Swiglu,
                d_model: 6,
                d_ff: 10,
                bias: false,
            },
            n_experts,
            n_active,
        };
        let scheme = InitScheme::He;
        initialise(config.init(device), &mut rng(1, Stream::Init, 0), |slot| {
            scheme.fill(slot)
        })
    }

    fn input(device: &Device) -> Tensor<3> {
        let values = normal(&mut rng(2, Stream::Data, 0), 2 * 5 * 6);
        Tensor::from_data(TensorData::new(values, [2, 5, 6]), device)
    }

    #[test]
    fn all_active_is_the_weighted_sum_of_all() {
        let device = Device::flex();
        let (layer, x) = (layer(3, 3, &device), input(&device));
        let (got, routing) = layer.forward(x.clone());
        let weights = softmax(layer.router.forward(x.clone()), 2);
        let parts =
            (0..3).map(|e| layer.experts[e].forward(x.clone()) * weights.clone().narrow(2, e, 1));
        let expected = parts.reduce(|sum, part| sum + part).unwrap();
        assert!((got - expected).abs().max().into_scalar::<f32>() < 1e-5);
        // Everyone is chosen, so the load is even whatever the router says.
        assert_eq!(routing.shares, [1.0 / 3.0; 3]);
        assert!((routing.balance.into_scalar::<f32>() - 3.0).abs() < 1e-5);
    }

    #[test]
    fn an_idle_expert_gets_nothing_and_costs() {
        let device = Device::flex();
        let mut layer = layer(4, 1, &device);
        // The router likes expert 2 for whatever comes.
        layer.router.weight = layer.router.weight.map(|w| w.zeros_like());
        let x = input(&device);
        let (_, even) = layer.forward(x.clone());
        assert_eq!(even.shares, [1.0, 0.0, 0.0, 0.0]);
        assert!((even.balance.into_scalar::<f32>() - 1.0).abs() < 1e-5);
        assert!((even.z.into_scalar::<f32>() - 4f32.ln().powi(2)).abs() < 1e-5);
        let bias = Tensor::<2>::from_floats([[0.0, 0.0, 9.0, 0.0]], &device);
        layer.router.weight = layer.router.weight.map(|w| w.zeros_like() + bias);
        let (out, routing) = layer.forward(x.clone().abs());
        assert_eq!(routing.shares, [0.0, 0.0, 1.0, 0.0]);
        assert!(routing.balance.into_scalar::<f32>() > 3.5);
        let expected = layer.experts[2].forward(x.abs());
        assert!((out - expected).abs().max().into_scalar::<f32>() < 1e-5);
    }

    #[test]
    fn a_collapsed_router_is_named() {
        let routing = |shares: [f32; 4]| Routing {
            shares: shares.to_vec(),
            balance: Tensor::zeros([1], &Device::flex()),
            z: Tensor::zeros([1], &Device::flex()),
        };
        let mut load = Load::default();
        assert_eq!((load.used(), load.collapse()), (None, None));
        load.add(&[routing([0.25; 4]), routing([0.5, 0.5, 0.0, 0.0])], 10);
        load.add(&[routing([0.25; 4]), routing([0.6, 0.4, 0.0, 0.0])], 30);
        assert!((load.used().unwrap() - 0.75).abs() < 0.01);
        assert_eq!(load.idle(), 2);
        let alarm = load.collapse().unwrap();
        assert!(
            alarm.starts_with("router collapse: block 2 uses 2.0 of its 4 experts;"),
            "{alarm}"
        );
        let mut even = Load::default();
        even.add(&[routing([0.4, 0.3, 0.2, 0.1])], 10);
        assert_eq!(even.collapse(), None);
    }

    #[test]
    fn router_and_experts_learn() {
        let device = Device::flex().autodiff();
        let layer = layer(4, 2, &device);
        let (out, routing) = layer.forward(input(&device));
        let grads = (out.square().mean() + routing.balance * 0.1 + routing.z * 0.1).backward();
        let size = |weight: Tensor<2>| {
            let gradient = weight.grad(&grads);
            gradient.map_or(0.0, |gradient| gradient.abs().max().into_scalar::<f32>())
        };
        assert!(size(layer.router.weight.val()) > 1e-4);
        let learning = layer
            .experts
            .iter()
            .filter(|e| size(e.down.weight.val()) > 1e-6);
        let busy = routing.shares.iter().filter(|share| **share > 0.0).count();
        assert_eq!(learning.count(), busy);
    }
}
