//! Pictures: from tensors to PNG files that say how they were made, and back.

use crate::GenerateError;
use burn::tensor::Tensor;
use std::io::{Cursor, Write};
use std::path::Path;

/// The metadata key under which a picture carries its whole recipe, as JSON.
pub const RECIPE_KEY: &str = "maquette";

/// The largest PNG, decoded or as metadata, that is read: 256 MiB.
const LARGEST: usize = 256 << 20;
/// The longest text that one metadata chunk may unpack to: 16 MiB.
const LONGEST_TEXT: usize = 16 << 20;

/// An 8-bit picture, rows from the top, channels interleaved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    width: usize,
    height: usize,
    channels: usize,
    pixels: Vec<u8>,
}

impl Picture {
    /// A picture of `height` rows of `width` pixels of `channels` (1 grey, 3 red-green-blue).
    ///
    /// # Errors
    /// An empty picture, another number of channels, or another number of bytes than these make.
    pub fn new(
        width: usize,
        height: usize,
        channels: usize,
        pixels: Vec<u8>,
    ) -> Result<Self, GenerateError> {
        let bytes = width
            .checked_mul(height)
            .and_then(|n| n.checked_mul(channels));
        if !matches!(channels, 1 | 3) || pixels.is_empty() || bytes != Some(pixels.len()) {
            return Err(GenerateError::Picture(format!(
                "{} bytes are no picture of {width} x {height} pixels and {channels} channels; \
                 pictures have 1 channel (grey) or 3 (colour)",
                pixels.len()
            )));
        }
        Ok(Self {
            width,
            height,
            channels,
            pixels,
        })
    }

    /// Pixels in a row.
    pub fn width(&self) -> usize {
        self.width
    }

    /// Rows.
    pub fn height(&self) -> usize {
        self.height
    }

    /// 1 for grey, 3 for colour.
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// The bytes, `[height, width, channels]`.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// Every pixel repeated `factor` times in both directions: sharp, for small images on a
    /// screen.
    ///
    /// # Errors
    /// A factor of 0, or a result too large to hold.
    pub fn upscaled(&self, factor: usize) -> Result<Self, GenerateError> {
        let size = factor
            .checked_mul(factor)
            .and_then(|f| f.checked_mul(self.pixels.len()))
            .filter(|&n| n > 0 && n <= LARGEST);
        let Some(size) = size else {
            return Err(GenerateError::Picture(format!(
                "cannot enlarge a picture of {} x {} pixels {factor} times",
                self.width, self.height
            )));
        };
        let mut pixels = Vec::with_capacity(size);
        for row in self.pixels.chunks_exact(self.width * self.channels) {
            let wide: Vec<u8> = row
                .chunks_exact(self.channels)
                .flat_map(|pixel| pixel.repeat(factor))
                .collect();
            for _ in 0..factor {
                pixels.extend_from_slice(&wide);
            }
        }
        Self::new(
            self.width * factor,
            self.height * factor,
            self.channels,
            pixels,
        )
    }
}

/// Turns a batch of images into pictures: `low` becomes 0, `high` becomes 255, values beyond are
/// clipped and a NaN becomes 0.
///
/// # Shapes
/// - images: `[batch, channels, height, width]`
///
/// # Errors
/// Channels other than 1 or 3, or an empty range.
pub fn pictures(images: Tensor<4>, low: f32, high: f32) -> Result<Vec<Picture>, GenerateError> {
    let [_, channels, height, width] = images.dims();
    if high.is_nan() || low.is_nan() || high <= low {
        return Err(GenerateError::Picture(format!(
            "the range from {low} to {high} holds no brightness"
        )));
    }
    let values: Vec<f32> = images
        .permute([0, 2, 3, 1])
        .try_into_vec_as::<f32>()
        .map_err(|e| GenerateError::Device(format!("{e:?}")))?;
    let byte = |v: &f32| (255.0 * (v - low) / (high - low)).round().clamp(0.0, 255.0) as u8;
    values
        .chunks_exact((channels * height * width).max(1))
        .map(|image| Picture::new(width, height, channels, image.iter().map(byte).collect()))
        .collect()
}

/// Sets pictures of one size side by side, `columns` in a row, with `padding` pixels of
/// `background` between and around them; places left over are background.
///
/// # Errors
/// No pictures, no columns, or pictures of different shapes.
pub fn grid(
    pictures: &[Picture],
    columns: usize,
    padding: usize,
    background: u8,
) -> Result<Picture, GenerateError> {
    let Some(first) = pictures.first().filter(|_| columns > 0) else {
        return Err(GenerateError::Picture(
            "a grid needs at least one picture and one column".into(),
        ));
    };
    let shape = |p: &Picture| (p.width, p.height, p.channels);
    if let Some(i) = pictures.iter().position(|p| shape(p) != shape(first)) {
        return Err(GenerateError::Picture(format!(
            "picture {i} is {:?} (width, height, channels) but the first is {:?}; a grid needs one size",
            shape(&pictures[i]),
            shape(first)
        )));
    }
    let columns = columns.min(pictures.len());
    let rows = pictures.len().div_ceil(columns);
    let width = columns * (first.width + padding) + padding;
    let height = rows * (first.height + padding) + padding;
    let line = first.width * first.channels;
    let mut pixels = vec![background; width * height * first.channels];
    for (i, picture) in pictures.iter().enumerate() {
        let left = padding + (i % columns) * (first.width + padding);
        let top = padding + (i / columns) * (first.height + padding);
        for (y, row) in picture.pixels.chunks_exact(line).enumerate() {
            let at = ((top + y) * width + left) * first.channels;
            pixels[at..at + line].copy_from_slice(row);
        }
    }
    Picture::new(width, height, first.channels, pixels)
}

/// The PNG file of `picture` with `metadata` as UTF-8 text chunks (iTXt). The same picture and
/// metadata always give the same bytes.
///
/// # Errors
/// A metadata key that is empty, longer than 79 characters or not Latin-1.
pub fn encode_png(picture: &Picture, metadata: &[(&str, &str)]) -> Result<Vec<u8>, GenerateError> {
    let failed = |e: png::EncodingError| {
        GenerateError::Picture(format!(
            "cannot encode a picture of {} x {} pixels: {e}",
            picture.width, picture.height
        ))
    };
    let too_large = |_| {
        GenerateError::Picture(format!(
            "a picture of {} x {} pixels is too large for PNG",
            picture.width, picture.height
        ))
    };
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(
        &mut bytes,
        u32::try_from(picture.width).map_err(too_large)?,
        u32::try_from(picture.height).map_err(too_large)?,
    );
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(match picture.channels {
        1 => png::ColorType::Grayscale,
        _ => png::ColorType::Rgb,
    });
    for (key, text) in metadata {
        encoder
            .add_itxt_chunk((*key).into(), (*text).into())
            .map_err(failed)?;
    }
    let mut writer = encoder.write_header().map_err(failed)?;
    writer.write_image_data(&picture.pixels).map_err(failed)?;
    writer.finish().map_err(failed)?;
    Ok(bytes)
}

/// Writes [`encode_png`] to `path`, whole or not at all: to a temporary file beside it first,
/// which then takes its name.
///
/// # Errors
/// As [`encode_png`], or a folder that cannot be written to.
pub fn write_png(
    path: &Path,
    picture: &Picture,
    metadata: &[(&str, &str)],
) -> Result<(), GenerateError> {
    let bytes = encode_png(picture, metadata)?;
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(&bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(|e| GenerateError::Png {
        path: path.into(),
        what: format!("cannot write the picture: {e}; check that the folder exists and has room"),
    })
}

/// What a PNG file says about itself: its text chunks in the order of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Metadata(pub Vec<(String, String)>);

impl Metadata {
    /// The first text under `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0
            .iter()
            .find(|(k, _)| k == key)
            .map(|(_, text)| text.as_str())
    }
}

/// Reads a picture and its metadata. 8-bit grey and colour are exact; palettes, 16 bit and
/// transparency are reduced to them.
///
/// # Errors
/// A file that cannot be opened, is no PNG, is damaged, or unpacks to more than 256 MiB.
pub fn read_png(path: &Path) -> Result<(Picture, Metadata), GenerateError> {
    let bytes = read_bytes(path)?;
    decode_png(&bytes).map_err(|what| GenerateError::Png {
        path: path.into(),
        what,
    })
}

/// Reads only what [`read_png`] would report as metadata; the picture is checked all the same.
///
/// # Errors
/// As [`read_png`].
pub fn read_metadata(path: &Path) -> Result<Metadata, GenerateError> {
    Ok(read_png(path)?.1)
}

/// The recipe that [`RECIPE_KEY`] holds.
///
/// # Errors
/// As [`read_png`], or a picture without a recipe.
pub fn read_recipe(path: &Path) -> Result<String, GenerateError> {
    let metadata = read_metadata(path)?;
    match metadata.get(RECIPE_KEY) {
        Some(recipe) => Ok(recipe.to_owned()),
        None => Err(GenerateError::Png {
            path: path.into(),
            what: format!(
                "the picture carries no recipe (no `{RECIPE_KEY}` text); it was not made by Maquette, \
                 or a program that edited it dropped its metadata"
            ),
        }),
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>, GenerateError> {
    let failed = |what: String| GenerateError::Png {
        path: path.into(),
        what,
    };
    let size = std::fs::metadata(path)
        .map_err(|e| failed(format!("cannot open the picture: {e}")))?
        .len();
    if size > LARGEST as u64 {
        return Err(failed(format!(
            "the file has {size} bytes; pictures of up to {LARGEST} are read"
        )));
    }
    std::fs::read(path).map_err(|e| failed(format!("cannot read the picture: {e}")))
}

/// The picture and metadata in a PNG file's bytes, or what is wrong with them.
fn decode_png(bytes: &[u8]) -> Result<(Picture, Metadata), String> {
    let broken = |e: png::DecodingError| format!("not a readable PNG file: {e}");
    let mut decoder =
        png::Decoder::new_with_limits(Cursor::new(bytes), png::Limits { bytes: LARGEST });
    decoder.set_transformations(png::Transformations::normalize_to_color8());
    let mut reader = decoder.read_info().map_err(broken)?;
    let size = reader
        .output_buffer_size()
        .filter(|&size| size <= LARGEST)
        .ok_or_else(|| format!("the picture unpacks to more than {LARGEST} bytes"))?;
    let mut pixels = vec![0; size];
    let frame = reader.next_frame(&mut pixels).map_err(broken)?;
    pixels.truncate(frame.buffer_size());
    // Text may also stand after the pixels.
    reader.finish().map_err(broken)?;

    let mut texts = Vec::new();
    let info = reader.info();
    for chunk in &info.uncompressed_latin1_text {
        texts.push((chunk.keyword.clone(), chunk.text.clone()));
    }
    let damaged = |key: &str, e| format!("the text `{key}` in the file is damaged: {e}");
    for mut chunk in info.compressed_latin1_text.clone() {
        chunk
            .decompress_text_with_limit(LONGEST_TEXT)
            .map_err(|e| damaged(&chunk.keyword, e))?;
        let text = chunk.get_text().map_err(|e| damaged(&chunk.keyword, e))?;
        texts.push((chunk.keyword, text));
    }
    for mut chunk in info.utf8_text.clone() {
        chunk
            .decompress_text_with_limit(LONGEST_TEXT)
            .map_err(|e| damaged(&chunk.keyword, e))?;
        let text = chunk.get_text().map_err(|e| damaged(&chunk.keyword, e))?;
        texts.push((chunk.keyword, text));
    }

    let (samples, channels) = match frame.color_type {
        png::ColorType::Grayscale => (1, 1),
        png::ColorType::GrayscaleAlpha => (2, 1),
        png::ColorType::Rgb => (3, 3),
        png::ColorType::Rgba => (4, 3),
        png::ColorType::Indexed => return Err("the palette could not be resolved".into()),
    };
    if samples != channels {
        pixels = pixels
            .chunks_exact(samples)
            .flat_map(|pixel| pixel[..channels].to_vec())
            .collect();
    }
    Picture::new(
        frame.width as usize,
        frame.height as usize,
        channels,
        pixels,
    )
    .map(|picture| (picture, Metadata(texts)))
    .map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Device, TensorData};
    use proptest::prelude::*;

    fn small() -> Picture {
        Picture::new(2, 2, 1, vec![0, 1, 2, 3]).unwrap()
    }

    #[test]
    fn tensors_become_interleaved_bytes() {
        // One colour image of 1 x 2 pixels, channels apart: red -1 0, green 0 1, blue 2 -3.
        let values = vec![-1.0f32, 0.0, 0.0, 1.0, 2.0, -3.0];
        let images = Tensor::from_data(TensorData::new(values, [1, 3, 1, 2]), &Device::flex());
        let got = pictures(images.clone(), -1.0, 1.0).unwrap();
        assert_eq!(got.len(), 1);
        assert_eq!(got[0].pixels(), [0, 128, 255, 128, 255, 0]);
        assert!(pictures(images, 1.0, 1.0).is_err());
    }

    #[test]
    fn upscaling_repeats_pixels() {
        let got = small().upscaled(2).unwrap();
        assert_eq!((got.width(), got.height()), (4, 4));
        assert_eq!(
            got.pixels(),
            [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
        );
        assert!(small().upscaled(0).is_err());
        assert!(small().upscaled(usize::MAX).is_err());
    }

    #[test]
    fn grids_by_hand() {
        let one = |v| Picture::new(1, 1, 1, vec![v]).unwrap();
        let got = grid(&[one(1), one(2), one(3)], 2, 1, 9).unwrap();
        assert_eq!((got.width(), got.height()), (5, 5));
        #[rustfmt::skip]
        assert_eq!(got.pixels(), [
            9, 9, 9, 9, 9,
            9, 1, 9, 2, 9,
            9, 9, 9, 9, 9,
            9, 3, 9, 9, 9,
            9, 9, 9, 9, 9,
        ]);
        assert!(grid(&[], 2, 1, 9).is_err());
        assert!(grid(&[one(1)], 0, 1, 9).is_err());
        let unlike = grid(&[one(1), small()], 2, 1, 9).unwrap_err();
        assert!(unlike.to_string().contains("picture 1"));
    }

    #[test]
    fn pictures_and_their_metadata_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.png");
        let recipe = r#"{"seed": 7, "label": "é日本", "model": "ab12"}"#;
        for picture in [
            small(),
            Picture::new(1, 2, 3, vec![1, 2, 3, 4, 5, 6]).unwrap(),
        ] {
            let metadata = [(RECIPE_KEY, recipe), ("Title", "two")];
            write_png(&path, &picture, &metadata).unwrap();
            let (back, read) = read_png(&path).unwrap();
            assert_eq!(back, picture);
            assert_eq!(read.get("Title"), Some("two"));
            assert_eq!(read_recipe(&path).unwrap(), recipe);
            let again = encode_png(&picture, &metadata).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), again);
        }
    }

    #[test]
    fn trouble_with_files_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let missing = write_png(&at("no/a.png"), &small(), &[]).unwrap_err();
        assert!(missing.to_string().contains("folder"), "{missing}");
        assert!(
            read_metadata(&at("no.png"))
                .unwrap_err()
                .to_string()
                .contains("cannot open")
        );
        std::fs::write(at("text.png"), "not a picture").unwrap();
        let text = read_metadata(&at("text.png")).unwrap_err().to_string();
        assert!(text.contains("not a readable PNG"), "{text}");
        write_png(&at("plain.png"), &small(), &[]).unwrap();
        let plain = read_recipe(&at("plain.png")).unwrap_err().to_string();
        assert!(plain.contains("no recipe"), "{plain}");
        let key = "k".repeat(80);
        assert!(encode_png(&small(), &[(&key, "text")]).is_err());
        assert!(Picture::new(2, 2, 2, vec![0; 8]).is_err());
        assert!(Picture::new(usize::MAX, 2, 1, vec![0; 8]).is_err());
    }

    #[test]
    fn a_header_that_promises_too_much_is_refused() {
        // A valid header of 65,535 x 65,535 grey pixels with hardly any data behind it.
        let mut bytes = encode_png(&small(), &[]).unwrap();
        bytes[16..24].copy_from_slice(&[0, 0, 255, 255, 0, 0, 255, 255]);
        let crc = crc32(&bytes[12..29]);
        bytes[29..33].copy_from_slice(&crc.to_be_bytes());
        let what = decode_png(&bytes).unwrap_err();
        assert!(what.contains("more than"), "{what}");
    }

    /// The checksum of a PNG chunk, ISO 3309.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0u32, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |c, _| {
                (c >> 1) ^ (0xEDB8_8320 & (0u32.wrapping_sub(c & 1)))
            })
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn damaged_files_never_panic(at in 0usize..400, byte in any::<u8>(), cut in 0usize..400) {
            let text = "x".repeat(200);
            let mut bytes = encode_png(&small(), &[(RECIPE_KEY, &text)]).unwrap();
            let len = bytes.len();
            bytes[at % len] = byte;
            let _ = decode_png(&bytes);
            bytes.truncate(cut % len);
            prop_assert!(decode_png(&bytes).is_err());
        }

        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = decode_png(&bytes);
        }
    }
}
