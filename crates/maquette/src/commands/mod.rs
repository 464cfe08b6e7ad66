//! One file per command: resolve what was typed, then run it.

pub mod completions;
pub mod device;
pub mod doctor;
pub mod evaluate;
pub mod generate;
pub mod lab;
pub mod list;
pub mod progress;
pub mod recipes;
pub mod threads;
pub mod tokenizer;
pub mod train;
