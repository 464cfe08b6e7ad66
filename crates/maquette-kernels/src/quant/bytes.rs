//! Bytes of weights, wherever they live.

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use memmap2::Mmap;

/// Bytes that somebody owns: a vector, or part of a memory-mapped file. Clones share them.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    /// The file they are part of, if they are.
    map: Option<Arc<Mmap>>,
}

impl Bytes {
    /// All that `owner` holds.
    pub fn new(owner: Arc<dyn AsRef<[u8]> + Send + Sync>) -> Self {
        Self {
            range: 0..(*owner).as_ref().len(),
            owner,
            map: None,
        }
    }

    /// All of a file.
    pub(crate) fn of_map(map: Arc<Mmap>) -> Self {
        Self {
            map: Some(map.clone()),
            ..Self::new(map)
        }
    }

    /// The file that they are part of.
    #[cfg(unix)]
    pub(crate) fn map(&self) -> Option<&Arc<Mmap>> {
        self.map.as_ref()
    }

    /// Whether both are parts of one map of a file.
    #[cfg(unix)]
    pub(crate) fn of_the_same_file(&self, other: &Self) -> bool {
        matches!((&self.map, &other.map), (Some(a), Some(b)) if Arc::ptr_eq(a, b))
    }

    /// Bytes `range` of these; none if there are fewer.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        self.get(range.clone())?;
        let start = self.range.start;
        Some(Self {
            owner: self.owner.clone(),
            range: start + range.start..start + range.end,
            map: self.map.clone(),
        })
    }

    /// Bytes `range` of what `owner` holds; none if it holds fewer.
    pub fn part(owner: Arc<dyn AsRef<[u8]> + Send + Sync>, range: Range<usize>) -> Option<Self> {
        (*owner).as_ref().get(range.clone())?;
        Some(Self {
            owner,
            range,
            map: None,
        })
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self::new(Arc::new(bytes))
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
