//! A map that forgets: what a recording names, its connections and requests, may be more than memory should hold.

use std::collections::BTreeMap;
use std::ops::{RangeBounds, RangeInclusive};

use super::ConnectionId;
use crate::protocol::fastcgi::RequestId;

/// A map of at most so many entries. What was not touched for longest makes room for what is new.
#[derive(Debug)]
pub(super) struct Bounded<K, V> {
    entries: BTreeMap<K, (u64, V)>,
    /// The keys by when they were touched last.
    order: BTreeMap<u64, K>,
    touches: u64,
    limit: usize,
}

impl<K: Copy + Ord, V> Bounded<K, V> {
    pub(super) fn new(limit: usize) -> Self {
        Self { entries: BTreeMap::new(), order: BTreeMap::new(), touches: 0, limit: limit.max(1) }
    }

    /// Adds an entry, or replaces it, and gives back what had to go for it: the old value under the key, or the oldest entry.
    pub(super) fn insert(&mut self, key: K, value: V) -> Option<(K, V)> {
        let replaced = self.remove(&key).map(|old| (key, old));
        let gone = if self.entries.len() == self.limit { self.remove_oldest() } else { None };
        self.touches += 1;
        self.order.insert(self.touches, key);
        self.entries.insert(key, (self.touches, value));
        replaced.or(gone)
    }

    /// The value, which is the newest now.
    pub(super) fn touch(&mut self, key: &K) -> Option<&mut V> {
        let (touched, value) = self.entries.get_mut(key)?;
        // Mostly the same one is touched again and again.
        if *touched != self.touches {
            self.order.remove(touched);
            self.touches += 1;
            *touched = self.touches;
            self.order.insert(self.touches, *key);
        }
        Some(value)
    }

    pub(super) fn remove(&mut self, key: &K) -> Option<V> {
        let (touched, value) = self.entries.remove(key)?;
        self.order.remove(&touched);
        Some(value)
    }

    pub(super) fn remove_oldest(&mut self) -> Option<(K, V)> {
        let (_, key) = self.order.pop_first()?;
        let (_, value) = self.entries.remove(&key)?;
        Some((key, value))
    }

    /// Takes out all whose key lies in the range, those first that were touched first.
    pub(super) fn take(&mut self, range: impl RangeBounds<K>) -> Vec<(K, V)> {
        let mut keys: Vec<(u64, K)> = self.entries.range(range).map(|(key, (touched, _))| (*touched, *key)).collect();
        keys.sort_by_key(|(touched, _)| *touched);
        keys.into_iter().filter_map(|(_, key)| Some((key, self.remove(&key)?))).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}

/// The keys of all requests of a connection.
pub(super) fn of_connection(connection: ConnectionId) -> RangeInclusive<(ConnectionId, RequestId)> {
    (connection, RequestId(0))..=(connection, RequestId(u16::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_touched_longest_ago_makes_room() {
        let mut map = Bounded::new(2);
        assert_eq!(map.insert(1, 'a'), None);
        assert_eq!(map.insert(2, 'b'), None);
        assert_eq!(map.touch(&1), Some(&mut 'a'));
        assert_eq!(map.insert(3, 'c'), Some((2, 'b')));
        assert_eq!(map.insert(3, 'd'), Some((3, 'c')), "a value that is replaced comes back");
        assert_eq!((map.len(), map.touch(&2)), (2, None));
        assert_eq!(map.remove(&1), Some('a'));
        assert_eq!(map.take(3..=3), [(3, 'd')]);
        assert_eq!(map.remove_oldest(), None);
    }
}
