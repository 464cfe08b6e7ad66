//! Damage to bytes, as a function of its number.

use maquette::rng::rand::Rng as _;
use maquette::rng::{Rng, Stream, rng};

/// Numbers at which parsers count wrongly.
const EDGES: [u64; 10] = [
    0,
    1,
    0x7f,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    0x7fff_ffff_ffff_ffff,
    0x8000_0000_0000_0000,
    u64::MAX,
];
/// Pieces of text that mean something to one or another of the parsers.
const WORDS: [&str; 16] = [
    "99999999999999999999",
    "-1",
    "1e308",
    "null",
    "{}",
    "[]",
    "\"\"",
    "{{",
    "}}",
    "{%",
    "%}",
    "[[",
    "=",
    "\\u0000",
    "true",
    "0.5",
];

fn below(random: &mut Rng, n: usize) -> usize {
    (random.next_u64() % n.max(1) as u64) as usize
}

/// Mutation number `at` of the seeds: one to four pieces of damage.
pub(crate) fn mutated(seeds: &[Vec<u8>], at: u64) -> Vec<u8> {
    let random = &mut rng(0, Stream::Data, at);
    let mut bytes = seeds[at as usize % seeds.len()].clone();
    for _ in 0..=below(random, 4) {
        damage(&mut bytes, seeds, random);
    }
    bytes
}

fn damage(bytes: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Rng) {
    // Headers come first: half of all damage is done there.
    let reach = match random.next_u64() % 2 {
        0 => bytes.len().min(512),
        _ => bytes.len(),
    };
    let at = below(random, reach);
    match random.next_u64() % 8 {
        0 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte ^= 1 << (random.next_u64() % 8);
            }
        }
        1 => {
            if let Some(byte) = bytes.get_mut(at) {
                *byte = random.next_u64() as u8;
            }
        }
        2 => {
            let edge = EDGES[below(random, EDGES.len())];
            let edge = edge.wrapping_add(random.next_u64() % 3).wrapping_sub(1);
            let mut number = edge.to_le_bytes();
            if random.next_u64().is_multiple_of(4) {
                number.reverse();
            }
            let width = 1 << below(random, 4);
            for (to, from) in bytes.iter_mut().skip(at).zip(&number[..width]) {
                *to = *from;
            }
        }
        3 => bytes.truncate(at),
        4 => {
            let end = (at + 1 + below(random, 32)).min(bytes.len());
            bytes.drain(at.min(end)..end);
        }
        5 => {
            let end = (at + 1 + below(random, 64)).min(bytes.len());
            let copy = bytes[at.min(end)..end].to_vec();
            bytes.splice(at..at, copy);
        }
        6 => {
            let word = WORDS[below(random, WORDS.len())];
            // In place of a number, or in between.
            let digits = bytes[at..]
                .iter()
                .take_while(|byte| byte.is_ascii_digit())
                .count();
            bytes.splice(at..at + digits, word.bytes());
        }
        _ => {
            let other = &seeds[below(random, seeds.len())];
            let from = below(random, other.len());
            let end = (from + below(random, 64)).min(other.len());
            bytes.splice(at..at, other[from..end].iter().copied());
        }
    }
}
