//! Pictures one after the other: GIF, which everything shows, and animated PNG, which loses nothing.

use std::time::Duration;

use ::image::codecs::gif::{GifEncoder, Repeat};
use ::image::{Delay, Frame, RgbaImage};

use crate::GenerateError;
use crate::image::Picture;

/// Formats of moving pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Animation {
    /// At most 256 colours in a picture.
    Gif,
    /// Animated PNG.
    Apng,
}

impl Animation {
    /// The usual end of a file's name.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Gif => "gif",
            Self::Apng => "png",
        }
    }

    /// The file that shows each of `frames` for so long, over and over. The same frames always give
    /// the same bytes.
    ///
    /// # Errors
    /// No frames, frames of different shapes, or a time of a minute and more.
    pub fn encode(self, frames: &[Picture], each: Duration) -> Result<Vec<u8>, GenerateError> {
        let fault = |reason: &str| GenerateError::Picture(format!("no animation: {reason}"));
        let first = frames.first().ok_or_else(|| fault("no frames"))?;
        let shape = |p: &Picture| (p.width(), p.height(), p.channels());
        if frames.iter().any(|frame| shape(frame) != shape(first)) {
            return Err(fault("frames differ in size"));
        }
        let millis = u16::try_from(each.as_millis()).ok();
        let millis = millis.filter(|millis| *millis < 60_000);
        let millis = millis.ok_or_else(|| fault("a frame is shown for less than a minute"))?;
        match self {
            Self::Gif => gif(frames, millis).map_err(|error| fault(&error.to_string())),
            Self::Apng => apng(frames, millis).map_err(|error| fault(&error.to_string())),
        }
    }
}

fn gif(frames: &[Picture], millis: u16) -> ::image::ImageResult<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = GifEncoder::new(&mut bytes);
    encoder.set_repeat(Repeat::Infinite)?;
    for frame in frames {
        let pixels = frame.pixels().chunks_exact(frame.channels());
        let pixels = pixels.flat_map(|p| [p[0], p[p.len() / 2], p[p.len() - 1], 255]);
        let (width, height) = (frame.width() as u32, frame.height() as u32);
        let image = RgbaImage::from_raw(width, height, pixels.collect())
            .expect("a picture has as many bytes as its size asks for");
        let delay = Delay::from_numer_denom_ms(u32::from(millis), 1);
        encoder.encode_frame(Frame::from_parts(image, 0, 0, delay))?;
    }
    drop(encoder);
    Ok(bytes)
}

fn apng(frames: &[Picture], millis: u16) -> Result<Vec<u8>, png::EncodingError> {
    let mut bytes = Vec::new();
    let (width, height) = (frames[0].width() as u32, frames[0].height() as u32);
    let mut encoder = png::Encoder::new(&mut bytes, width, height);
    encoder.set_depth(png::BitDepth::Eight);
    encoder.set_color(match frames[0].channels() {
        1 => png::ColorType::Grayscale,
        _ => png::ColorType::Rgb,
    });
    encoder.set_animated(frames.len() as u32, 0)?;
    encoder.set_frame_delay(millis, 1000)?;
    let mut writer = encoder.write_header()?;
    for frame in frames {
        writer.write_image_data(frame.pixels())?;
    }
    writer.finish()?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use ::image::AnimationDecoder;
    use ::image::codecs::{gif::GifDecoder, png::PngDecoder};
    use std::io::Cursor;

    fn frames(channels: usize) -> Vec<Picture> {
        let picture = |i: u8| {
            let pixels = (0..6 * channels as u8).map(|p| 20 * p / channels as u8 + i);
            Picture::new(3, 2, channels, pixels.collect()).unwrap()
        };
        (0..4).map(picture).collect()
    }

    #[test]
    fn every_frame_comes_back() {
        let each = Duration::from_millis(80);
        for channels in [1, 3] {
            let frames = frames(channels);
            let gif = Animation::Gif.encode(&frames, each).unwrap();
            let apng = Animation::Apng.encode(&frames, each).unwrap();
            assert_eq!(apng, Animation::Apng.encode(&frames, each).unwrap());
            let gif = GifDecoder::new(Cursor::new(gif)).unwrap().into_frames();
            let apng = PngDecoder::new(Cursor::new(apng)).unwrap().apng().unwrap();
            for decoded in [gif, apng.into_frames()] {
                let decoded = decoded.collect_frames().unwrap();
                assert_eq!(decoded.len(), 4);
                for (frame, want) in decoded.iter().zip(&frames) {
                    assert_eq!(frame.delay().numer_denom_ms(), (80, 1));
                    let red = frame.buffer().pixels().map(|p| p[0]);
                    let want = want.pixels().iter().step_by(channels).copied();
                    assert!(red.eq(want));
                }
            }
        }
    }

    #[test]
    fn what_does_not_move_is_refused() {
        let each = Duration::from_millis(80);
        assert!(Animation::Gif.encode(&[], each).is_err());
        let mut mixed = frames(1);
        mixed.extend(frames(3));
        assert!(Animation::Apng.encode(&mixed, each).is_err());
        let long = Duration::from_secs(61);
        assert!(Animation::Gif.encode(&frames(1), long).is_err());
    }
}
