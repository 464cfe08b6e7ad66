//! Keys and values in pages that sequences share (Kwon et al. 2023, arXiv:2309.06180).
//!
//! A page holds [`PAGE`] positions of all layers. Sequences hold pages by count. A full page is known
//! by its tokens and the page before it: a text that begins as another did takes its pages instead of
//! computing them again, as long as nobody needed the room.

use std::collections::{BTreeMap, HashMap};

use maquette_kernels::paged::{PAGE, page_len};
use maquette_models::GptConfig;

/// A page of the pool.
pub(super) type PageId = usize;

/// What a full page is known by: the serial number of the page before it, 0 before the first, and
/// its tokens. Serial numbers are given once, so equal keys mean equal texts from the first token.
type Key = (u64, [u32; PAGE]);

/// All pages there are.
#[derive(Debug)]
pub(super) struct Pool {
    pages: Vec<Page>,
    /// Pages that may be made.
    limit: usize,
    /// Numbers of a page's layer, and layers.
    layer: usize,
    n_layers: usize,
    /// Nobody's, without contents.
    free: Vec<PageId>,
    /// Nobody's, with contents worth keeping, by when they were let go.
    idle: BTreeMap<u64, PageId>,
    known: HashMap<Key, PageId>,
    /// The last serial number and the last time given.
    serial: u64,
    clock: u64,
}

#[derive(Debug)]
struct Page {
    /// `[n_layers, layer]`
    numbers: Box<[f32]>,
    holders: usize,
    /// Where `idle` has it.
    let_go: u64,
    /// Where `known` has it, and its serial number.
    known: Option<(Key, u64)>,
}

impl Pool {
    /// Room for `positions` positions, in whole pages.
    pub(super) fn new(config: &GptConfig, positions: usize) -> Self {
        Self {
            pages: Vec::new(),
            limit: positions.div_ceil(PAGE),
            layer: page_len(config.kv_heads(), config.head_width()),
            n_layers: config.n_layers,
            free: Vec::new(),
            idle: BTreeMap::new(),
            known: HashMap::new(),
            serial: 0,
            clock: 0,
        }
    }

    /// Pages that could be taken.
    pub(super) fn available(&self) -> usize {
        self.limit - self.pages.len() + self.free.len() + self.idle.len()
    }

    /// Pages that sequences hold.
    pub(super) fn held(&self) -> usize {
        self.limit - self.available()
    }

    /// All pages that may be made.
    pub(super) fn limit(&self) -> usize {
        self.limit
    }

    /// An empty page, held once; the contents let go longest ago are forgotten for it if need be.
    pub(super) fn take(&mut self) -> Option<PageId> {
        if let Some(id) = self.free.pop() {
            self.pages[id].holders = 1;
            return Some(id);
        }
        if self.pages.len() < self.limit {
            self.pages.push(Page {
                numbers: vec![0.0; self.layer * self.n_layers].into(),
                holders: 1,
                let_go: 0,
                known: None,
            });
            return Some(self.pages.len() - 1);
        }
        let (_, id) = self.idle.pop_first()?;
        if let Some((key, _)) = self.pages[id].known.take() {
            self.known.remove(&key);
        }
        self.pages[id].holders = 1;
        Some(id)
    }

    /// Lets go of a page.
    pub(super) fn release(&mut self, id: PageId) {
        let page = &mut self.pages[id];
        page.holders -= 1;
        if page.holders > 0 {
            return;
        }
        match page.known {
            None => self.free.push(id),
            Some(_) => {
                self.clock += 1;
                page.let_go = self.clock;
                self.idle.insert(self.clock, id);
            }
        }
    }

    /// The page that follows `before` with these tokens, held once more.
    pub(super) fn find(&mut self, before: Option<PageId>, tokens: &[u32]) -> Option<PageId> {
        let id = *self.known.get(&self.key(before, tokens)?)?;
        let page = &mut self.pages[id];
        if page.holders == 0 {
            self.idle.remove(&page.let_go);
        }
        page.holders += 1;
        Some(id)
    }

    /// Makes a page that is now full known by its tokens. Another one with the same contents stays
    /// the known one.
    pub(super) fn publish(&mut self, id: PageId, before: Option<PageId>, tokens: &[u32]) {
        let Some(key) = self.key(before, tokens) else {
            return;
        };
        if self.pages[id].known.is_some() || self.known.contains_key(&key) {
            return;
        }
        self.serial += 1;
        self.pages[id].known = Some((key, self.serial));
        self.known.insert(key, id);
    }

    /// No key for a page that follows an unknown one.
    fn key(&self, before: Option<PageId>, tokens: &[u32]) -> Option<Key> {
        let serial = match before {
            None => 0,
            Some(id) => self.pages[id].known?.1,
        };
        Some((serial, tokens.try_into().ok()?))
    }

    /// One layer of a page.
    pub(super) fn layer(&self, id: PageId, layer: usize) -> &[f32] {
        &self.pages[id].numbers[layer * self.layer..][..self.layer]
    }

    /// One layer of a page, to be written.
    pub(super) fn layer_mut(&mut self, id: PageId, layer: usize) -> &mut [f32] {
        &mut self.pages[id].numbers[layer * self.layer..][..self.layer]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(pages: usize) -> Pool {
        let config = GptConfig {
            d_model: 4,
            n_layers: 1,
            n_heads: 1,
            ..GptConfig::llama()
        };
        Pool::new(&config, pages * PAGE)
    }

    #[test]
    fn known_pages_are_shared_until_the_room_is_needed() {
        let mut pool = pool(2);
        let (a, b) = ([1; PAGE], [2; PAGE]);
        let first = pool.take().unwrap();
        pool.publish(first, None, &a);
        let second = pool.take().unwrap();
        pool.publish(second, Some(first), &b);
        assert_eq!(pool.take(), None);
        assert_eq!(pool.find(None, &a), Some(first));
        // The same tokens after another beginning are another page.
        assert_eq!(pool.find(None, &b), None);
        assert_eq!(pool.find(Some(first), &b), Some(second));
        for id in [first, first, second, second] {
            pool.release(id);
        }
        assert_eq!((pool.available(), pool.held()), (2, 0));
        assert_eq!(pool.find(None, &a), Some(first));
        // Now the room is needed, and what was let go first is forgotten.
        assert_eq!(pool.take(), Some(second));
        assert_eq!(pool.find(Some(first), &b), None);
        assert_eq!(pool.available(), 0);
    }

    #[test]
    fn a_page_is_known_once() {
        let mut pool = pool(3);
        let [first, again] = [pool.take().unwrap(), pool.take().unwrap()];
        pool.publish(first, None, &[1; PAGE]);
        pool.publish(again, None, &[1; PAGE]);
        pool.release(again);
        assert_eq!(pool.find(None, &[1; PAGE]), Some(first));
        // What follows an unknown page is unknown.
        let lost = pool.take().unwrap();
        let next = pool.take().unwrap();
        pool.publish(next, Some(lost), &[2; PAGE]);
        assert_eq!(pool.find(Some(lost), &[2; PAGE]), None);
    }
}
