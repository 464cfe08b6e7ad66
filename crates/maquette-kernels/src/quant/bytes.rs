//! Bytes of weights, wherever they live.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes that somebody owns: a vector, or part of a memory-mapped file. Clones share them.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl Bytes {
    /// All that `owner` holds.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self {
            range: 0..(*owner).as_ref().len(),
            owner,
        }
    }

    /// Bytes `range` of these; none if there are fewer.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self {
            owner: self.owner.clone(),
            range: start + range.start..start + range.end,
        })
    }

    /// Bytes `range` of what `owner` holds; none if it holds fewer.
    pub fn part(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self { owner, range })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            range: 0..bytes.len(),
            owner: Arc::new(bytes),
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.range.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_of_what_is_there() {
        let owner = Arc::new(vec![1, 2, 3]);
        assert_eq!(*Bytes::part(owner.clone(), 1..3).unwrap(), [2, 3]);
        assert!(Bytes::part(owner.clone(), 2..4).is_none());
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = Bytes::part(owner, 3..1);
        assert!(reversed.is_none());
        assert_eq!(*Bytes::from(vec![7]), [7]);
    }
}
