//! What several test modules share.

use std::path::PathBuf;

/// A folder or file of the shared data; `None`, with a line that says so, where it is missing.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let root = std::env::var_os("MAQUETTE_TEST_DATA").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/data")),
        PathBuf::from,
    );
    let path = root.join(name);
    if !path.exists() {
        eprintln!("skipped: {} is missing", path.display());
        return None;
    }
    Some(path)
}

/// The text of a file; of one that is no text, its first 100,000 bytes as if they were. `None` where
/// it is missing.
pub(crate) fn texts(path: &std::path::Path) -> Option<String> {
    let bytes = std::fs::read(path).ok()?;
    Some(String::from_utf8(bytes).unwrap_or_else(|e| {
        let bytes = e.as_bytes();
        String::from_utf8_lossy(&bytes[..bytes.len().min(100_000)]).into_owned()
    }))
}
