//! A decoder's weights, ready to be multiplied with: matrices as they lie in their file, vectors as
//! 32-bit floats.

use std::path::Path;

use maquette_kernels::quant::{MatrixError, QuantMatrix, forward};
use maquette_models::gpt::Positions;
use maquette_models::nn::{Gathering, NormKind, positions, rope};
use maquette_models::{Gpt, GptConfig, ModelError, RawTensor, RawWeights};

/// A decoder to be run by an [`Engine`](super::Engine).
#[derive(Debug)]
pub struct Weights {
    pub(super) config: GptConfig,
    pub(super) tokens: QuantMatrix,
    pub(super) positions: Option<PositionTable>,
    pub(super) rope: Option<Rope>,
    /// Of ALiBi, one per head.
    pub(super) slopes: Option<Vec<f32>>,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// The transposed embedding if absent.
    pub(super) head: Option<QuantMatrix>,
    gathering: Gathering,
}

/// What is added to the embedding, which is multiplied first.
#[derive(Debug)]
pub(super) struct PositionTable {
    pub(super) scale: f32,
    /// `[seq_len, d_model]`
    pub(super) rows: Vec<f32>,
}

#[derive(Debug)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
    gain: f64,
    pub(super) pairs: forward::Pairs,
}

#[derive(Debug)]
pub(super) struct Norm {
    gain: Vec<f32>,
    offset: Option<Vec<f32>>,
    kind: NormKind,
    epsilon: f32,
}

/// A projection.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[d_out, d_in]`
    pub(super) matrix: QuantMatrix,
    pub(super) offset: Option<Vec<f32>>,
}

#[derive(Debug)]
pub(super) struct Block {
    pub(super) attention_norm: Norm,
    /// Queries, keys and values.
    pub(super) qkv: [Linear; 3],
    /// Of every query and every key.
    pub(super) qk_norm: Option<[Norm; 2]>,
    pub(super) proj: Linear,
    pub(super) mlp_norm: Norm,
    pub(super) router: Option<Linear>,
    /// As many as the router chooses from; one if there is no router.
    pub(super) mlps: Vec<Mlp>,
}

#[derive(Debug)]
pub(super) struct Mlp {
    pub(super) gate: Option<Linear>,
    pub(super) up: Linear,
    pub(super) down: Linear,
}

impl Weights {
    /// The model at `path`: a Hugging Face folder, a run folder or a GGUF file.
    ///
    /// It is mapped, and can be used at once. One that takes at most half of the free memory is copied there
    /// meanwhile, into large pages; a larger one stays where the system keeps files.
    ///
    /// # Errors
    /// [`ModelError`] where the file is damaged, or its weights are not those of its configuration.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let mut raw = RawWeights::open(path)?;
        let gathering = match raw.size() as u64 <= free_memory() / 2 {
            true => raw.gather(),
            false => Gathering::default(),
        };
        let weights = Self::of_raw(raw)?;
        Ok(Self {
            gathering,
            ..weights
        })
    }

    /// Waits until they are where they stay: what is measured before also has them copied.
    pub fn settle(&mut self) {
        std::mem::take(&mut self.gathering).wait();
    }

    /// A copy of the weights of a model in memory.
    pub fn of(config: &GptConfig, model: &Gpt) -> Self {
        Self::of_raw(RawWeights::of(config, model)).expect("a model fits its own configuration")
    }

    /// The weights of an opened file.
    ///
    /// # Errors
    /// [`ModelError`] where they are not those of the configuration.
    pub fn of_raw(mut raw: RawWeights) -> Result<Self, ModelError> {
        let config = raw.config.clone();
        config.validate()?;
        let mut parts = Parts { raw: &mut raw };
        let blocks = (0..config.n_layers).map(|layer| parts.block(layer, &config));
        let blocks = blocks.collect::<Result<_, _>>()?;
        let tokens = parts.matrix("tokens.weight")?;
        let positions = match config.positions {
            Positions::Learned => Some(PositionTable {
                scale: 1.0,
                rows: parts.numbers("positions.weight")?,
            }),
            Positions::Sinusoidal => Some(PositionTable {
                scale: (config.d_model as f32).sqrt(),
                rows: positions::waves(config.seq_len, config.d_model),
            }),
            Positions::Rotary | Positions::Alibi => None,
        };
        let norm = parts.norm("norm", &config)?;
        let head = match config.tied_head {
            true => None,
            false => Some(parts.matrix("head.weight")?),
        };
        let rotary = config.positions == Positions::Rotary;
        let rope = rotary.then(|| {
            let (theta, scaling) = (config.rope_theta, config.rope_scaling.as_ref());
            let (frequencies, gain) = rope::frequencies(config.head_width(), theta, scaling);
            Rope {
                frequencies,
                gain,
                pairs: match raw.neighbours {
                    true => forward::Pairs::Neighbours,
                    false => forward::Pairs::Halves,
                },
            }
        });
        let alibi = config.positions == Positions::Alibi;
        Ok(Self {
            slopes: alibi.then(|| positions::alibi_slopes(config.n_heads)),
            config,
            tokens,
            positions,
            rope,
            blocks,
            norm,
            head,
            gathering: Gathering::default(),
        })
    }

    /// The model's configuration.
    pub fn config(&self) -> &GptConfig {
        &self.config
    }

    /// Bytes of the matrices that one token is multiplied with; of the embedding it needs a row.
    pub fn bytes_per_token(&self) -> usize {
        let linear = |linear: &Linear| linear.matrix.bytes().len();
        let mlp =
            |mlp: &Mlp| linear(&mlp.up) + linear(&mlp.down) + mlp.gate.as_ref().map_or(0, linear);
        let active = self.config.experts.map_or(1, |experts| experts.active);
        let block = |block: &Block| {
            let attention = block.qkv.iter().chain([&block.proj]).chain(&block.router);
            attention.map(linear).sum::<usize>()
                + block.mlps.iter().take(active).map(mlp).sum::<usize>()
        };
        let head = self.head.as_ref().unwrap_or(&self.tokens).bytes().len();
        self.blocks.iter().map(block).sum::<usize>() + head
    }
}

/// Bytes that the system would give to this process without taking them from others; 0 if it does not say.
fn free_memory() -> u64 {
    let Ok(mut system) = sysinfo::System::new() else {
        return 0;
    };
    system.refresh_memory();
    let limit = system.cgroup_limits().map(|limits| limits.free_memory);
    system.available_memory().min(limit.unwrap_or(u64::MAX))
}

impl Rope {
    /// Cosines and sines of the angles at a position, `[d_head / 2]` each.
    pub(super) fn angles(&self, position: usize, cos: &mut [f32], sin: &mut [f32]) {
        for ((frequency, cos), sin) in self.frequencies.iter().zip(cos).zip(sin) {
            let angle = position as f64 * frequency;
            *cos = (self.gain * angle.cos()) as f32;
            *sin = (self.gain * angle.sin()) as f32;
        }
    }
}

impl Norm {
    pub(super) fn apply(&self, x: &[f32], out: &mut [f32]) {
        match (self.kind, &self.offset) {
            (NormKind::RmsNorm, _) => forward::rms_norm(x, &self.gain, self.epsilon, out),
            (NormKind::LayerNorm, offset) => {
                let offset = offset.as_deref().unwrap_or(&[]);
                forward::layer_norm(x, &self.gain, offset, self.epsilon, out);
            }
        }
    }
}

impl Mlp {
    pub(super) fn width(&self) -> usize {
        self.up.matrix.rows()
    }
}

/// Turns raw tensors into matrices and vectors of the sizes asked for.
struct Parts<'a> {
    raw: &'a mut RawWeights,
}

impl Parts<'_> {
    fn take(&mut self, name: &str) -> Result<Vec<RawTensor>, ModelError> {
        let parts = self.raw.take(name);
        match parts.is_empty() {
            false => Ok(parts),
            true => Err(ModelError::Names {
                path: self.raw.path().to_owned(),
                missing: vec![name.to_owned()],
                unexpected: vec![],
            }),
        }
    }

    fn numbers(&mut self, name: &str) -> Result<Vec<f32>, ModelError> {
        let parts = self.take(name)?;
        Ok(parts.iter().flat_map(RawTensor::numbers).collect())
    }

    fn quant(&self, tensor: RawTensor) -> Result<QuantMatrix, ModelError> {
        let RawTensor {
            format,
            rows,
            columns,
            bytes,
        } = tensor;
        let made = QuantMatrix::new(format, rows, columns, bytes);
        made.map_err(|error: MatrixError| ModelError::Corrupt {
            path: self.raw.path().to_owned(),
            format: "weights",
            reason: error.to_string(),
        })
    }

    fn matrix(&mut self, name: &str) -> Result<QuantMatrix, ModelError> {
        let mut parts = self.take(name)?;
        self.quant(parts.remove(0))
    }

    fn offset(&mut self, name: &str, has: bool) -> Result<Option<Vec<f32>>, ModelError> {
        has.then(|| self.numbers(&format!("{name}.bias")))
            .transpose()
    }

    fn linear(&mut self, name: &str, bias: bool) -> Result<Linear, ModelError> {
        Ok(Linear {
            matrix: self.matrix(&format!("{name}.weight"))?,
            offset: self.offset(name, bias)?,
        })
    }

    fn norm(&mut self, name: &str, config: &GptConfig) -> Result<Norm, ModelError> {
        let layer = config.norm == NormKind::LayerNorm;
        let gain = self.numbers(&format!("{name}.weight"))?;
        let offset = match layer && config.bias {
            true => Some(self.numbers(&format!("{name}.bias"))?),
            false => layer.then(|| vec![0.0; gain.len()]),
        };
        Ok(Norm {
            gain,
            offset,
            kind: config.norm,
            epsilon: config.norm_eps as f32,
        })
    }

    fn block(&mut self, layer: usize, config: &GptConfig) -> Result<Block, ModelError> {
        let name = |part: &str| format!("blocks.{layer}.{part}");
        let bias = config.mlp_bias();
        let mlp = |parts: &mut Self, name: String| {
            let gated = config.mlp.is_gated();
            let gate = gated.then(|| parts.linear(&format!("{name}.gate"), bias));
            Ok::<_, ModelError>(Mlp {
                gate: gate.transpose()?,
                up: parts.linear(&format!("{name}.up"), bias)?,
                down: parts.linear(&format!("{name}.down"), bias)?,
            })
        };
        let (router, mlps) = match &config.experts {
            None => (None, vec![mlp(self, name("mlp"))?]),
            Some(experts) => {
                let expert = |e| mlp(self, name(&format!("moe.experts.{e}")));
                let mlps = (0..experts.count).map(expert).collect::<Result<_, _>>()?;
                (Some(self.linear(&name("moe.router"), false)?), mlps)
            }
        };
        let head_norm = |parts: &mut Self, part: &str| {
            Ok::<_, ModelError>(Norm {
                gain: parts.numbers(&name(&format!("attention.{part}.weight")))?,
                offset: None,
                kind: NormKind::RmsNorm,
                epsilon: config.norm_eps as f32,
            })
        };
        let qk_norm = match config.qk_norm {
            true => Some([head_norm(self, "q_norm")?, head_norm(self, "k_norm")?]),
            false => None,
        };
        Ok(Block {
            attention_norm: self.norm(&name("attention_norm"), config)?,
            qkv: self.qkv(&name("attention.qkv"), config)?,
            qk_norm,
            proj: self.linear(&name("attention.proj"), config.proj_bias())?,
            mlp_norm: self.norm(&name("mlp_norm"), config)?,
            router,
            mlps,
        })
    }

    /// Queries, keys and values apart, whether they lie in three matrices or in one.
    fn qkv(&mut self, name: &str, config: &GptConfig) -> Result<[Linear; 3], ModelError> {
        let (q, kv) = (
            config.n_heads * config.head_width(),
            config.kv_heads() * config.head_width(),
        );
        let mut matrices = self.take(&format!("{name}.weight"))?;
        if let [joint] = &matrices[..] {
            matrices = split(joint, [q, kv, kv]);
        }
        let mut offsets = match self.offset(name, config.qkv_bias())? {
            None => [None, None, None],
            Some(all) => {
                let part = |from: usize, width: usize| Some(all[from..from + width].to_vec());
                [part(0, q), part(q, kv), part(q + kv, kv)]
            }
        }
        .into_iter();
        let mut made = matrices.into_iter().map(|matrix| {
            Ok::<_, ModelError>(Linear {
                matrix: self.quant(matrix)?,
                offset: offsets.next().flatten(),
            })
        });
        let mut next = || made.next().expect("three projections, by the layout");
        Ok([next()?, next()?, next()?])
    }
}

/// Rows of a matrix as several.
fn split(joint: &RawTensor, rows: [usize; 3]) -> Vec<RawTensor> {
    let row = joint.bytes.len() / joint.rows.max(1);
    let mut from = 0;
    let part = |rows: usize| {
        let bytes = joint.bytes.slice(from * row..(from + rows) * row);
        from += rows;
        RawTensor {
            rows,
            bytes: bytes.expect("parts of the rows, by the layout"),
            ..joint.clone()
        }
    };
    rows.map(part).into()
}
