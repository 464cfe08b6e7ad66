//! Number formats of GGUF tensors, as ggml defines them: blocks of a few numbers that share a scale.
//!
//! A block holds small integers `q` and what makes numbers of them: `x = d q`, or, in super-blocks
//! of 256 with a scale and an offset of six bits per part, `x = d s q - e m`.

use half::{bf16, f16};

/// How the numbers of a tensor are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32-bit floats.
    F32,
    /// 16-bit floats.
    F16,
    /// The upper halves of 32-bit floats.
    Bf16,
    /// 4 bits, a scale per 32: 4.5 bits per number.
    Q4_0,
    /// 8 bits, a scale per 32: 8.5 bits.
    Q8_0,
    /// 4 bits, a scale and an offset per 32: 4.5 bits.
    Q4K,
    /// 5 bits, a scale and an offset per 32: 5.5 bits.
    Q5K,
    /// 6 bits, a scale per 16: 6.5625 bits.
    Q6K,
}

/// Numbers of a super-block.
const SUPER: usize = 256;

impl Format {
    /// Every one of them.
    pub const ALL: [Self; 8] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::Q4_0,
        Self::Q8_0,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];

    /// Its number in a file.
    pub fn id(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Q4_0 => 2,
            Self::Q8_0 => 8,
            Self::Q4K => 12,
            Self::Q5K => 13,
            Self::Q6K => 14,
            Self::Bf16 => 30,
        }
    }

    /// The format of this number in a file, if it is one of these.
    pub fn of_id(id: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|format| format.id() == id)
    }

    /// Its usual name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "F32",
            Self::F16 => "F16",
            Self::Bf16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q8_0 => "Q8_0",
            Self::Q4K => "Q4_K",
            Self::Q5K => "Q5_K",
            Self::Q6K => "Q6_K",
        }
    }

    /// Numbers and bytes of a block.
    pub fn block(self) -> (usize, usize) {
        match self {
            Self::F32 => (1, 4),
            Self::F16 | Self::Bf16 => (1, 2),
            Self::Q4_0 => (32, 18),
            Self::Q8_0 => (32, 34),
            Self::Q4K => (SUPER, 144),
            Self::Q5K => (SUPER, 176),
            Self::Q6K => (SUPER, 210),
        }
    }

    /// Bytes of a row of this many numbers; none if it is not of whole blocks.
    pub fn row_bytes(self, numbers: usize) -> Option<usize> {
        let (length, bytes) = self.block();
        (numbers.is_multiple_of(length)).then(|| (numbers / length).checked_mul(bytes))?
    }

    /// The numbers of whole blocks.
    ///
    /// # Panics
    /// If `out` is not as long as the blocks hold numbers.
    pub fn decode(self, bytes: &[u8], out: &mut [f32]) {
        let (length, size) = self.block();
        assert_eq!(
            (bytes.len() % size, bytes.len() / size * length),
            (0, out.len()),
            "blocks of {} and the numbers they hold",
            self.name()
        );
        let decode: fn(&[u8], &mut [f32]) = match self {
            Self::F32 => {
                |block, out| out[0] = f32::from_le_bytes([block[0], block[1], block[2], block[3]])
            }
            Self::F16 => |block, out| out[0] = half_at(block, 0),
            Self::Bf16 => |block, out| out[0] = bf16::from_le_bytes([block[0], block[1]]).to_f32(),
            Self::Q4_0 => decode_q4_0,
            Self::Q8_0 => decode_q8_0,
            Self::Q4K => decode_q4_k,
            Self::Q5K => decode_q5_k,
            Self::Q6K => decode_q6_k,
        };
        for (block, out) in bytes.chunks_exact(size).zip(out.chunks_exact_mut(length)) {
            decode(block, out);
        }
    }

    /// The nearest that blocks of this format can say.
    ///
    /// # Panics
    /// If the numbers do not fill whole blocks.
    pub fn encode(self, numbers: &[f32]) -> Vec<u8> {
        let (length, size) = self.block();
        assert!(
            numbers.len().is_multiple_of(length),
            "{} numbers do not fill whole blocks of {}",
            numbers.len(),
            self.name()
        );
        let encode: fn(&[f32], &mut Vec<u8>) = match self {
            Self::F32 => |block, out| out.extend(block[0].to_le_bytes()),
            Self::F16 => |block, out| out.extend(f16::from_f32(block[0]).to_le_bytes()),
            Self::Bf16 => |block, out| out.extend(bf16::from_f32(block[0]).to_le_bytes()),
            Self::Q4_0 => encode_q4_0,
            Self::Q8_0 => encode_q8_0,
            Self::Q4K => encode_q4_k,
            Self::Q5K => encode_q5_k,
            Self::Q6K => encode_q6_k,
        };
        let mut out = Vec::with_capacity(numbers.len() / length * size);
        for block in numbers.chunks_exact(length) {
            encode(block, &mut out);
        }
        out
    }
}

fn half_at(bytes: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
}

fn put_half(out: &mut Vec<u8>, value: f32) {
    out.extend(f16::from_f32(value).to_le_bytes());
}

fn decode_q4_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    let (low, high) = out.split_at_mut(16);
    for ((byte, low), high) in block[2..].iter().zip(low).zip(high) {
        *low = d * (f32::from(byte & 15) - 8.0);
        *high = d * (f32::from(byte >> 4) - 8.0);
    }
}

fn encode_q4_0(block: &[f32], out: &mut Vec<u8>) {
    // The number furthest from zero becomes -8, so that the range's one-sided end is used.
    let far = |far: f32, x: &f32| if x.abs() > far.abs() { *x } else { far };
    let d = block.iter().fold(0.0, far) / -8.0;
    let per = if d == 0.0 { 0.0 } else { 1.0 / d };
    put_half(out, d);
    let level = |x: f32| (x * per + 8.5).clamp(0.0, 15.0) as u8;
    out.extend((0..16).map(|i| level(block[i]) | level(block[i + 16]) << 4));
}

fn decode_q8_0(block: &[u8], out: &mut [f32]) {
    let d = half_at(block, 0);
    for (byte, out) in block[2..].iter().zip(out) {
        *out = d * f32::from(byte.cast_signed());
    }
}

fn encode_q8_0(block: &[f32], out: &mut Vec<u8>) {
    let d = largest(block) / 127.0;
    let per = if d == 0.0 { 0.0 } else { 1.0 / d };
    put_half(out, d);
    out.extend(
        block
            .iter()
            .map(|x| ((x * per).round() as i8).cast_unsigned()),
    );
}

/// The largest magnitude.
fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |top: f32, x| top.max(x.abs()))
}

/// Scale and offset of a part of a super-block, six bits each in twelve bytes: the first four of
/// each whole, of the last four the upper two bits above the first four's.
fn scale_and_offset(packed: &[u8], part: usize) -> (f32, f32) {
    let (scale, offset) = match part < 4 {
        true => (packed[part] & 63, packed[part + 4] & 63),
        false => (
            packed[part + 4] & 15 | packed[part - 4] >> 6 << 4,
            packed[part + 4] >> 4 | packed[part] >> 6 << 4,
        ),
    };
    (f32::from(scale), f32::from(offset))
}

/// The inverse of [`scale_and_offset`] for all eight parts.
fn pack_scales(scales: [u8; 8], offsets: [u8; 8]) -> [u8; 12] {
    std::array::from_fn(|i| match i {
        0..4 => scales[i] | scales[i + 4] >> 4 << 6,
        4..8 => offsets[i - 4] | offsets[i] >> 4 << 6,
        _ => scales[i - 4] & 15 | (offsets[i - 4] & 15) << 4,
    })
}

fn decode_q4_k(block: &[u8], out: &mut [f32]) {
    let (d, e) = (half_at(block, 0), half_at(block, 2));
    let (packed, levels) = (&block[4..16], &block[16..]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(packed, part);
        let (scale, offset) = (d * scale, e * offset);
        // Two parts share 32 bytes, one in the lower halves, one in the upper.
        for (byte, out) in levels[part / 2 * 32..].iter().zip(out) {
            let level = byte >> (part % 2 * 4) & 15;
            *out = scale * f32::from(level) - offset;
        }
    }
}

fn decode_q5_k(block: &[u8], out: &mut [f32]) {
    let (d, e) = (half_at(block, 0), half_at(block, 2));
    let (packed, fifth, levels) = (&block[4..16], &block[16..48], &block[48..]);
    for (part, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, offset) = scale_and_offset(packed, part);
        let (scale, offset) = (d * scale, e * offset);
        let bytes = levels[part / 2 * 32..].iter().zip(fifth);
        for ((byte, fifth), out) in bytes.zip(out) {
            let level = byte >> (part % 2 * 4) & 15 | (fifth >> part & 1) << 4;
            *out = scale * f32::from(level) - offset;
        }
    }
}

fn decode_q6_k(block: &[u8], out: &mut [f32]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let d = half_at(block, 208);
    for (i, out) in out.iter_mut().enumerate() {
        let (half, quarter, at) = (i / 128, i % 128 / 32, i % 32);
        let low = low[half * 64 + quarter % 2 * 32 + at] >> (quarter / 2 * 4) & 15;
        let high = high[half * 32 + at] >> (2 * quarter) & 3;
        let level = f32::from(low | high << 4) - 32.0;
        *out = d * f32::from(scales[i / 16].cast_signed()) * level;
    }
}

/// Scale `s` and offset `m`, neither negative, for which `s q - m` with `q` in `0..=top` comes
/// closest to the numbers: from several first guesses of `s`, the levels, then the best `s` and `m`
/// for these by least squares.
fn fit_affine(numbers: &[f32], top: u8) -> (f32, f32) {
    let low = numbers.iter().copied().fold(0.0, f32::min);
    let high = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if high <= low {
        return (0.0, -low);
    }
    let top = f32::from(top);
    let count = numbers.len() as f32;
    let mut best = (f32::INFINITY, 0.0, 0.0);
    for guess in 0..20 {
        let scale = (high - low) / (top + 0.1 * (guess as f32 - 9.0));
        // Numbers far from zero matter more to a product than those near it.
        let (mut weight, mut q_sum, mut qq_sum, mut x_sum, mut xq_sum) = (0.0, 0.0, 0.0, 0.0, 0.0);
        for x in numbers {
            let q = ((x - low) / scale).round().clamp(0.0, top);
            let w = x.abs() + 1e-3 * (high - low);
            weight += w;
            q_sum += w * q;
            qq_sum += w * q * q;
            x_sum += w * x;
            xq_sum += w * x * q;
        }
        let spread = weight * qq_sum - q_sum * q_sum;
        if spread <= 0.0 {
            continue;
        }
        let mut scale = (weight * xq_sum - q_sum * x_sum) / spread;
        let mut offset = -(qq_sum * x_sum - q_sum * xq_sum) / spread;
        if offset < 0.0 {
            (scale, offset) = (xq_sum / qq_sum, 0.0);
        }
        if scale <= 0.0 {
            continue;
        }
        let error: f32 = numbers
            .iter()
            .map(|x| {
                let q = ((x + offset) / scale).round().clamp(0.0, top);
                let w = x.abs() + 1e-3 * (high - low);
                w * (scale * q - offset - x).powi(2)
            })
            .sum();
        if error / count < best.0 {
            best = (error / count, scale, offset);
        }
    }
    match best.1 > 0.0 {
        true => (best.1, best.2),
        false => ((high - low) / top, -low),
    }
}

/// The parts of a super-block with six-bit scales and offsets: the two halves' header and levels.
fn encode_affine(block: &[f32], top: u8, out: &mut Vec<u8>) -> [u8; SUPER] {
    let fits: [(f32, f32); 8] = std::array::from_fn(|i| fit_affine(&block[32 * i..][..32], top));
    let most = |of: fn(&(f32, f32)) -> f32| fits.iter().map(of).fold(0.0, f32::max) / 63.0;
    let [d, e] = [most(|fit| fit.0), most(|fit| fit.1)];
    let six_bits = |value: f32, unit: f32| match unit > 0.0 {
        true => (value / unit).round().clamp(0.0, 63.0) as u8,
        false => 0,
    };
    let scales = fits.map(|fit| six_bits(fit.0, d));
    let offsets = fits.map(|fit| six_bits(fit.1, e));
    put_half(out, d);
    put_half(out, e);
    out.extend(pack_scales(scales, offsets));
    let [d, e] = [d, e].map(|unit| f16::from_f32(unit).to_f32());
    std::array::from_fn(|i| {
        let (scale, offset) = (
            d * f32::from(scales[i / 32]),
            e * f32::from(offsets[i / 32]),
        );
        match scale > 0.0 {
            true => ((block[i] + offset) / scale)
                .round()
                .clamp(0.0, f32::from(top)) as u8,
            false => 0,
        }
    })
}

fn encode_q4_k(block: &[f32], out: &mut Vec<u8>) {
    let levels = encode_affine(block, 15, out);
    for pair in levels.chunks_exact(64) {
        out.extend((0..32).map(|i| pair[i] | pair[i + 32] << 4));
    }
}

fn encode_q5_k(block: &[f32], out: &mut Vec<u8>) {
    let levels = encode_affine(block, 31, out);
    let fifth = |i: usize| {
        (0..8)
            .map(|part| levels[32 * part + i] >> 4 << part)
            .sum::<u8>()
    };
    out.extend((0..32).map(fifth));
    for pair in levels.chunks_exact(64) {
        out.extend((0..32).map(|i| pair[i] & 15 | (pair[i + 32] & 15) << 4));
    }
}

/// The scale for which `s q` with `q` in `-32..32` comes closest to the numbers.
fn fit_symmetric(numbers: &[f32]) -> f32 {
    let far = |far: f32, x: &f32| if x.abs() > far.abs() { *x } else { far };
    let far = numbers.iter().fold(0.0, far);
    if far == 0.0 {
        return 0.0;
    }
    let mut best = (f32::INFINITY, 0.0);
    for guess in -9..=9 {
        // The furthest number at the end of the range, or thereabouts.
        let scale = far / (-32.0 - 0.1 * guess as f32);
        let level = |x: f32, scale: f32| (x / scale).round().clamp(-32.0, 31.0);
        let (mut xq, mut qq) = (0.0, 0.0);
        for x in numbers {
            let (q, w) = (level(*x, scale), x * x);
            xq += w * x * q;
            qq += w * q * q;
        }
        if qq == 0.0 {
            continue;
        }
        let scale = xq / qq;
        let error = |x: &f32| x * x * (scale * level(*x, scale) - x).powi(2);
        let error = numbers.iter().map(error).sum();
        if error < best.0 {
            best = (error, scale);
        }
    }
    best.1
}

fn encode_q6_k(block: &[f32], out: &mut Vec<u8>) {
    let fits: [f32; 16] = std::array::from_fn(|i| fit_symmetric(&block[16 * i..][..16]));
    // The furthest scale becomes -128, the end that has one number more.
    let far = |far: f32, x: &f32| if x.abs() > far.abs() { *x } else { far };
    let d = fits.iter().fold(0.0, far) / -128.0;
    let scales = fits.map(|fit| match d == 0.0 {
        true => 0,
        false => (fit / d).round().clamp(-128.0, 127.0) as i8,
    });
    let unit = f16::from_f32(d).to_f32();
    let levels: [u8; SUPER] = std::array::from_fn(|i| {
        let scale = unit * f32::from(scales[i / 16]);
        match scale == 0.0 {
            true => 32,
            false => ((block[i] / scale).round().clamp(-32.0, 31.0) + 32.0) as u8,
        }
    });
    let at = |half: usize, quarter: usize, i: usize| levels[half * 128 + quarter * 32 + i];
    for half in 0..2 {
        for pair in 0..2 {
            let low = |i| at(half, pair, i) & 15 | (at(half, pair + 2, i) & 15) << 4;
            out.extend((0..32).map(low));
        }
    }
    for half in 0..2 {
        let high = |i| {
            (0..4)
                .map(|quarter| at(half, quarter, i) >> 4 << (2 * quarter))
                .sum::<u8>()
        };
        out.extend((0..32).map(high));
    }
    out.extend(scales.map(i8::cast_unsigned));
    put_half(out, d);
}
