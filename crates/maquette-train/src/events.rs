//! TensorBoard event files.
//!
//! A file is a sequence of TFRecords: length, masked CRC-32C of the length, payload, masked
//! CRC-32C of the payload. A payload is an `Event` message of TensorFlow's `event.proto`; only the
//! four fields that a scalar needs are written here.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use crate::TrainError;

/// Appends scalars to one event file.
#[derive(Debug)]
pub struct EventWriter {
    file: File,
    path: std::path::PathBuf,
}

impl EventWriter {
    /// Creates the file (or empties it) and writes the version record.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn create(path: &Path, wall_time: f64) -> Result<Self, TrainError> {
        let file = File::create(path).map_err(TrainError::io("create", path))?;
        let mut writer = Self {
            file,
            path: path.into(),
        };
        let mut event = Vec::new();
        double(&mut event, 1, wall_time);
        bytes(&mut event, 3, b"brain.Event:2");
        writer.record(&event)?;
        Ok(writer)
    }

    /// Appends one scalar.
    ///
    /// # Errors
    /// [`TrainError::Io`].
    pub fn scalar(
        &mut self,
        tag: &str,
        step: u64,
        value: f64,
        wall_time: f64,
    ) -> Result<(), TrainError> {
        let mut scalar = Vec::new();
        bytes(&mut scalar, 1, tag.as_bytes());
        key(&mut scalar, 2, 5);
        scalar.extend((value as f32).to_le_bytes());
        let mut summary = Vec::new();
        bytes(&mut summary, 1, &scalar);
        let mut event = Vec::new();
        double(&mut event, 1, wall_time);
        key(&mut event, 2, 0);
        varint(&mut event, step);
        bytes(&mut event, 5, &summary);
        self.record(&event)
    }

    fn record(&mut self, payload: &[u8]) -> Result<(), TrainError> {
        let length = (payload.len() as u64).to_le_bytes();
        let mut record = Vec::with_capacity(payload.len() + 16);
        record.extend(length);
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(payload);
        record.extend(masked_crc(payload).to_le_bytes());
        self.file
            .write_all(&record)
            .map_err(TrainError::io("write", &self.path))
    }
}

fn key(out: &mut Vec<u8>, field: u64, wire_type: u64) {
    varint(out, field << 3 | wire_type);
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn double(out: &mut Vec<u8>, field: u64, value: f64) {
    key(out, field, 1);
    out.extend(value.to_le_bytes());
}

fn bytes(out: &mut Vec<u8>, field: u64, value: &[u8]) {
    key(out, field, 2);
    varint(out, value.len() as u64);
    out.extend(value);
}

/// TFRecord's masking, so that a CRC of data that holds CRCs stays a good one.
fn masked_crc(data: &[u8]) -> u32 {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8)
}

/// CRC-32C (Castagnoli), bit by bit: a few dozen bytes per logged step.
fn crc32c(data: &[u8]) -> u32 {
    let mut crc = !0u32;
    for byte in data {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ (0x82f6_3b78 & (crc & 1).wrapping_neg());
        }
    }
    !crc
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_test_vectors() {
        // RFC 3720, appendix B.4, and the usual check value.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
    }

    #[test]
    fn varints_take_seven_bits_a_byte() {
        let mut out = Vec::new();
        varint(&mut out, 300);
        assert_eq!(out, [0xac, 0x02]);
    }

    #[test]
    fn a_file_is_framed_as_tensorboard_reads_it() {
        // The same bytes were read back with tensorboard's EventAccumulator (tensorboard 2.21).
        let file = tempfile::NamedTempFile::new().unwrap();
        let mut writer = EventWriter::create(file.path(), 1.0).unwrap();
        writer.scalar("train/loss", 7, 0.5, 2.0).unwrap();
        let data = std::fs::read(file.path()).unwrap();
        let mut rest = &data[..];
        let mut payloads = Vec::new();
        while !rest.is_empty() {
            let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
            assert_eq!(rest[8..12], masked_crc(&rest[..8]).to_le_bytes());
            let payload = &rest[12..12 + n];
            assert_eq!(rest[12 + n..16 + n], masked_crc(payload).to_le_bytes());
            payloads.push(payload.to_vec());
            rest = &rest[16 + n..];
        }
        assert_eq!(payloads.len(), 2);
        assert!(payloads[0].ends_with(b"brain.Event:2"));
        assert!(payloads[1].ends_with(&0.5f32.to_le_bytes()));
    }
}
