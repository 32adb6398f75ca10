//! An ordered list of names and values, all in one buffer: FastCGI params, CGI variables, header fields.
//!
//! A request brings some 25 variables. Two strings for each would cost more than everything else that is done for the
//! request, so a pair is four offsets into the buffer that it arrived in.

use std::fmt;

use bytes::Bytes;

/// Names and values, as bytes and in order. A name may occur several times.
///
/// What arrived on the wire stays in the buffer in which it arrived; what is added later goes behind it where it may grow, and else into a second
/// buffer. An offset at or past the end of the first counts on into the second.
pub struct Pairs {
    wire: Bytes,
    added: Vec<u8>,
    spans: Vec<Span>,
    /// How many zero bytes `added` has outside of all names and values; `None` where nobody has counted them.
    zeros_beside: Option<usize>,
}

/// Where one pair lies: the name directly followed by its value, or with a gap between them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Span {
    name_start: u32,
    name_len: u32,
    value_start: u32,
    value_len: u32,
}

impl Pairs {
    /// An empty list.
    pub fn new() -> Self {
        Self::with_capacity(0, 0)
    }

    /// An empty list with room for `pairs` pairs whose names and values have `bytes` bytes together.
    pub fn with_capacity(pairs: usize, bytes: usize) -> Self {
        let (added, spans) = (Vec::with_capacity(bytes), Vec::with_capacity(pairs));
        Self { wire: Bytes::new(), added, spans, zeros_beside: None }
    }

    /// An empty list over a buffer that arrived, for [`Pairs::push_span`] to point into.
    ///
    /// # Panics
    ///
    /// When `wire` is longer than 2³¹ bytes, which every limit on what arrives is far below.
    pub fn over(wire: Bytes, pairs: usize) -> Self {
        assert_short(&wire);
        Self { wire, added: Vec::new(), spans: Vec::with_capacity(pairs), zeros_beside: None }
    }

    /// A copy with room for so many pairs more, whose names and values have so many bytes together.
    pub(crate) fn clone_with_room(&self, pairs: usize, bytes: usize) -> Self {
        let Self { wire, added, spans, zeros_beside } = self;
        let mut copy = Self::with_capacity(spans.len() + pairs, added.len() + bytes);
        (copy.wire, copy.zeros_beside) = (wire.clone(), *zeros_beside);
        copy.added.extend_from_slice(added);
        copy.spans.extend_from_slice(spans);
        copy
    }

    /// Adds a pair that is part of the buffer given to [`Pairs::over`], as (start, length) of its name and of its value.
    ///
    /// # Panics
    ///
    /// When an end lies outside the buffer.
    pub fn push_span(&mut self, name: (usize, usize), value: (usize, usize)) {
        let end = name.0.saturating_add(name.1).max(value.0.saturating_add(value.1));
        assert!(end <= self.wire.len(), "a pair ends at {end}, its buffer at {}", self.wire.len());
        self.zeros_beside = None;
        // The assertions here and in `over` keep every number below 2^32.
        self.spans.push(Span {
            name_start: name.0 as u32,
            name_len: name.1 as u32,
            value_start: value.0 as u32,
            value_len: value.1 as u32,
        });
    }

    /// The list of pairs that were found in a buffer that arrived, none of which overlap, and how many zero bytes lie outside of them all. A pair
    /// that lies outside of the buffer panics when it is looked at.
    ///
    /// # Panics
    ///
    /// As [`Pairs::over`].
    pub(super) fn found(buffer: Vec<u8>, spans: Vec<Span>, zeros_beside: usize) -> Self {
        assert_short(&buffer);
        Self { wire: Bytes::new(), added: buffer, spans, zeros_beside: Some(zeros_beside) }
    }

    /// The memory of the buffer that may grow and of the list, both empty.
    pub(super) fn into_memory(self) -> (Vec<u8>, Vec<Span>) {
        let Self { mut added, mut spans, .. } = self;
        added.clear();
        spans.clear();
        (added, spans)
    }

    /// Adds a pair at the end, copying both.
    ///
    /// # Panics
    ///
    /// When the list would hold more than 2³² bytes.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        let (name, value) = (name.as_ref(), value.as_ref());
        let start = self.wire.len() + self.added.len();
        assert!(start + name.len() + value.len() <= u32::MAX as usize, "a list of pairs over 4 GiB");
        self.added.extend_from_slice(name);
        self.added.extend_from_slice(value);
        self.spans.push(Span {
            name_start: start as u32,
            name_len: name.len() as u32,
            value_start: (start + name.len()) as u32,
            value_len: value.len() as u32,
        });
    }

    /// How many pairs there are, repeated names counted each time.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The pairs in order, from either end.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (&[u8], &[u8])> + ExactSizeIterator + Clone {
        self.spans.iter().map(|span| self.pair(span))
    }

    /// The value of the last pair of that name.
    pub fn last(&self, name: &[u8]) -> Option<&[u8]> {
        let last = self.spans.iter().rev().find(|span| self.is_named(span, name))?;
        Some(self.bytes(last.value_start, last.value_len))
    }

    /// The values of that name in order, whatever the case of the name's ASCII letters.
    pub fn values_ignoring_case<'a>(&'a self, name: &[u8]) -> impl DoubleEndedIterator<Item = &'a [u8]> + Clone {
        let of_that_length = self.spans.iter().filter(move |span| span.name_len as usize == name.len());
        // The usual spelling is recognised much faster than any.
        let is_named = move |other: &[u8]| other == name || other.eq_ignore_ascii_case(name);
        let named = of_that_length.map(|span| self.pair(span)).filter(move |(other, _)| is_named(other));
        named.map(|(_, value)| value)
    }

    /// How many pairs have that name.
    pub fn count(&self, name: &[u8]) -> usize {
        self.spans.iter().filter(|span| self.is_named(span, name)).count()
    }

    /// The pairs whose names have one of these lengths, by their place in the list, with their names: mostly few. The lengths are a set of bits,
    /// the lowest of which stands for 0.
    #[inline]
    pub fn of_lengths(&self, lengths: u64) -> impl Iterator<Item = (usize, &[u8])> {
        let is_one = move |span: &Span| span.name_len < u64::BITS && lengths >> span.name_len & 1 == 1;
        let places = self.spans.iter().enumerate().filter(move |(_, span)| is_one(span));
        places.map(|(place, span)| (place, self.bytes(span.name_start, span.name_len)))
    }

    /// The value of the pair at that place.
    pub fn value(&self, place: usize) -> Option<&[u8]> {
        self.spans.get(place).map(|span| self.bytes(span.value_start, span.value_len))
    }

    /// Whether any name or value holds a zero byte.
    pub fn contains_zero(&self) -> bool {
        match self.zeros_beside {
            // To count them all is much faster than to look at each name and value.
            Some(beside) => memchr::memchr_iter(0, &self.added).count() != beside,
            None => self.iter().any(|(name, value)| name.contains(&0) || value.contains(&0)),
        }
    }

    /// Keeps the pairs for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let mut spans = std::mem::take(&mut self.spans);
        let before = spans.len();
        spans.retain(|span| {
            let (name, value) = self.pair(span);
            keep(name, value)
        });
        if spans.len() != before {
            // What is left behind may hold some.
            self.zeros_beside = None;
        }
        self.spans = spans;
    }

    /// Removes the pairs that have one of these names, and says whether there were any. However many the names, each pair is looked at once, and
    /// most of them by the length of their names alone.
    pub fn remove_named<N: AsRef<[u8]>>(&mut self, names: impl Iterator<Item = N> + Clone) -> bool {
        // All lengths from 63 on share a bit.
        let bit = |len: usize| 1_u64 << len.min(63);
        let lengths = names.clone().fold(0, |lengths, name| lengths | bit(name.as_ref().len()));
        let mut spans = std::mem::take(&mut self.spans);
        let before = spans.len();
        spans.retain(|span| {
            lengths & bit(span.name_len as usize) == 0 || !names.clone().any(|name| self.is_named(span, name.as_ref()))
        });
        let is_any_removed = spans.len() != before;
        if is_any_removed {
            // What is left behind may hold some.
            self.zeros_beside = None;
        }
        self.spans = spans;
        is_any_removed
    }

    /// Removes all pairs. The memory for added ones is kept for the next.
    pub fn clear(&mut self) {
        self.wire = Bytes::new();
        self.zeros_beside = None;
        self.added.clear();
        self.spans.clear();
    }

    /// Nearly all other names are told apart by their length alone, so that this costs less than to look at the pair.
    #[inline]
    fn is_named(&self, span: &Span, name: &[u8]) -> bool {
        span.name_len as usize == name.len() && self.bytes(span.name_start, span.name_len) == name
    }

    #[inline]
    fn pair(&self, span: &Span) -> (&[u8], &[u8]) {
        (self.bytes(span.name_start, span.name_len), self.bytes(span.value_start, span.value_len))
    }

    #[inline]
    fn bytes(&self, start: u32, len: u32) -> &[u8] {
        let (start, len) = (start as usize, len as usize);
        match start.checked_sub(self.wire.len()) {
            // An empty slice at the very end of the wire buffer lands here too, and is empty either way.
            Some(start) => &self.added[start..start + len],
            None => &self.wire[start..start + len],
        }
    }
}

impl Span {
    /// No pair.
    pub(super) const NONE: Self = Self { name_start: 0, name_len: 0, value_start: 0, value_len: 0 };

    /// A pair of which nothing lies between name and value, in a buffer of at most 2³¹ bytes.
    #[inline]
    pub(super) fn side_by_side(name: usize, name_len: usize, value_len: usize) -> Self {
        Self {
            name_start: name as u32,
            name_len: name_len as u32,
            value_start: (name + name_len) as u32,
            value_len: value_len as u32,
        }
    }
}

fn assert_short(buffer: &[u8]) {
    assert!(buffer.len() <= 1 << 31, "a buffer of {} bytes is over every limit on params", buffer.len());
}

/// With some room, since most copies are made to be added to.
impl Clone for Pairs {
    fn clone(&self) -> Self {
        const ROOM: (usize, usize) = (12, 512);
        self.clone_with_room(ROOM.0, ROOM.1)
    }
}

impl Default for Pairs {
    fn default() -> Self {
        Self::new()
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> FromIterator<(N, V)> for Pairs {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(pairs: I) -> Self {
        let mut list = Self::new();
        list.extend(pairs);
        list
    }
}

impl<N: AsRef<[u8]>, V: AsRef<[u8]>> Extend<(N, V)> for Pairs {
    fn extend<I: IntoIterator<Item = (N, V)>>(&mut self, pairs: I) {
        for (name, value) in pairs {
            self.push(name, value);
        }
    }
}

impl PartialEq for Pairs {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Pairs {}

impl fmt::Debug for Pairs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list()
            .entries(
                self.iter().map(|(name, value)| (name.escape_ascii().to_string(), value.escape_ascii().to_string())),
            )
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wire_and_added_pairs_stand_in_one_order() {
        let mut pairs = Pairs::over(Bytes::from_static(b"AbC"), 2);
        pairs.push_span((0, 1), (1, 1));
        pairs.push("D", "e");
        pairs.push_span((2, 1), (3, 0));
        pairs.push("", "");
        let list: Vec<_> = pairs.iter().collect();
        assert_eq!(list, [(&b"A"[..], &b"b"[..]), (b"D", b"e"), (b"C", b""), (b"", b"")]);
        pairs.retain(|name, _| name != b"D");
        assert_eq!(pairs.len(), 3);
        assert_eq!(pairs, [("A", "b"), ("C", ""), ("", "")].into_iter().collect());
    }

    #[test]
    fn a_zero_is_found_in_names_and_values_wherever_they_lie() {
        let mut pairs = Pairs::over(Bytes::from_static(b"NvN\0v"), 2);
        pairs.push_span((0, 1), (1, 1));
        pairs.push_span((2, 1), (4, 1));
        pairs.push("", "x");
        assert!(!pairs.contains_zero());
        pairs.push_span((2, 2), (4, 1));
        assert!(pairs.contains_zero());
    }

    #[test]
    fn zeros_between_pairs_hide_none_within_them() {
        for holder in [0, 3, 6] {
            let mut wire = *b"Nv\0Nv\0Nv\0";
            wire[holder + 1] = 0;
            let spans = [0, 3, 6].map(|start| Span::side_by_side(start, 1, 1));
            let mut found = Pairs::found(wire.into(), spans.into(), 3);
            assert!(found.contains_zero() && found.clone().contains_zero(), "{holder}");
            found.retain(|_, value| value != b"\0");
            assert!(!found.contains_zero(), "{holder}");
            found.push("x", "\0");
            assert!(found.contains_zero(), "{holder}");
        }
        let spans = [0, 3, 6].map(|start| Span::side_by_side(start, 1, 1));
        let mut found = Pairs::found(b"Nv\0Nv\0Nv\0".into(), spans.into(), 3);
        found.push("", "");
        assert!(!found.contains_zero());
        found.push("x", "\0");
        assert!(found.contains_zero());
    }

    #[test]
    fn pairs_are_found_by_their_name() {
        let pairs: Pairs = [("A", "1"), ("AB", "2"), ("A", "3"), ("", "4")].into_iter().collect();
        assert_eq!((pairs.last(b"A"), pairs.count(b"A")), (Some(&b"3"[..]), 2));
        assert_eq!((pairs.last(b""), pairs.count(b"")), (Some(&b"4"[..]), 1));
        for missing in [&b"B"[..], b"a", b"ABC"] {
            assert_eq!((pairs.last(missing), pairs.count(missing)), (None, 0));
        }
        assert_eq!(pairs.values_ignoring_case(b"a").collect::<Vec<_>>(), [b"1", b"3"]);
        let long = "N".repeat(64);
        let pairs: Pairs = [("A", "1"), (&long, "2"), ("", "3"), ("AB", "4"), ("B", "5")].into_iter().collect();
        let found: Vec<_> = pairs.of_lengths(1 | 1 << 1).collect();
        assert_eq!(found, [(0, &b"A"[..]), (2, b""), (4, b"B")]);
        assert_eq!((pairs.value(3), pairs.value(5)), (Some(&b"4"[..]), None));
    }

    #[test]
    fn pairs_are_removed_by_their_names_whatever_their_lengths() {
        // Names of 63 bytes and more are told apart by their bytes alone.
        let long = [62, 63, 64, 200].map(|len| "N".repeat(len));
        let all: Vec<&str> = ["", "A", "B", "AB", "A"].into_iter().chain(long.iter().map(String::as_str)).collect();
        for removed in [&["A"][..], &["", "AB"], &["Z", "B"], &[&long[1]], &[&long[2], "A"], &[&long[0], &long[3]]] {
            let mut pairs: Pairs = all.iter().map(|name| (name, "v")).collect();
            assert!(pairs.remove_named(removed.iter()), "{removed:?}");
            let left: Vec<&str> = all.iter().copied().filter(|name| !removed.contains(name)).collect();
            assert!(pairs.iter().eq(left.iter().map(|name| (name.as_bytes(), &b"v"[..]))), "{removed:?}");
            assert!(!pairs.remove_named(removed.iter()), "{removed:?}");
        }
        let mut pairs = Pairs::new();
        assert!(!pairs.remove_named(["A"].iter()));
        assert!(!pairs.remove_named(std::iter::empty::<&str>()));
    }

    #[test]
    #[should_panic(expected = "its buffer at 3")]
    fn a_span_outside_the_buffer_is_refused() {
        Pairs::over(Bytes::from_static(b"AbC"), 1).push_span((2, 1), (3, 1));
    }
}
