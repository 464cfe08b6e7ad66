//! Short stories from a seeded grammar.

/// `n` stories.
pub fn generate(n: usize, seed: u64) -> String {
    let _ = (n, seed);
    String::new()
}
