//! The binary as a user meets it: exit codes, JSON, errors that teach, on tiny budgets.

mod arena;
mod bench;
mod common;
mod convert;
mod evaluate;
mod families;
mod generate;
mod hub;
mod language;
mod listings;
mod metric;
mod refused;
mod tokenizer;
mod train;
mod translate;
