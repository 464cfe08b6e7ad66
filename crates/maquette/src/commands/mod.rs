//! One file per command: resolve what was typed, then run it.

pub(crate) mod arena;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod convert;
pub(crate) mod device;
pub(crate) mod doctor;
pub(crate) mod evaluate;
pub(crate) mod generate;
pub(crate) mod hub;
pub(crate) mod lab;
pub(crate) mod list;
pub(crate) mod metric;
pub(crate) mod progress;
pub(crate) mod recipes;
pub(crate) mod threads;
pub(crate) mod tokenizer;
pub(crate) mod train;
