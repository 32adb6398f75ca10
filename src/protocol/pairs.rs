//! An ordered list of names and values, all in one buffer: FastCGI params, CGI variables, header fields.
//!
//! A request brings some 25 variables. Two strings for each would cost more than everything else that is done for the
//! request, so a pair is four offsets into the buffer that it arrived in.

use std::fmt;

use bytes::Bytes;

/// Names and values, as bytes and in order. A name may occur several times.
///
/// What arrived on the wire stays in the buffer in which it arrived; what is added later goes into a second buffer.
/// An offset at or past the end of the first counts on into the second.
pub struct Pairs {
    wire: Bytes,
    added: Vec<u8>,
    spans: Vec<Span>,
    /// Each pair lies behind the one before it, and its value directly behind its name.
    in_order: bool,
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
        Self { wire: Bytes::new(), added: Vec::with_capacity(bytes), spans: Vec::with_capacity(pairs), in_order: true }
    }

    /// An empty list over a buffer that arrived, for [`Pairs::push_span`] to point into.
    ///
    /// # Panics
    ///
    /// When `wire` is longer than 2³¹ bytes, which every limit on what arrives is far below.
    pub fn over(wire: Bytes, pairs: usize) -> Self {
        assert!(wire.len() <= 1 << 31, "a buffer of {} bytes is over every limit on params", wire.len());
        Self { wire, added: Vec::new(), spans: Vec::with_capacity(pairs), in_order: true }
    }

    /// A copy with room for so many pairs more, whose names and values have so many bytes together.
    pub(crate) fn clone_with_room(&self, pairs: usize, bytes: usize) -> Self {
        let Self { wire, added, spans, in_order } = self;
        let mut copy = Self::with_capacity(spans.len() + pairs, added.len() + bytes);
        (copy.wire, copy.in_order) = (wire.clone(), *in_order);
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
        self.in_order = false;
        // The assertions here and in `over` keep every number below 2^32.
        self.spans.push(Span {
            name_start: name.0 as u32,
            name_len: name.1 as u32,
            value_start: value.0 as u32,
            value_len: value.1 as u32,
        });
    }

    /// The list of pairs that were found in a buffer that arrived, one behind the other.
    ///
    /// # Panics
    ///
    /// When `wire` is longer than 2³¹ bytes. A pair that lies outside panics when it is looked at.
    pub(super) fn found(wire: Bytes, spans: Vec<Span>) -> Self {
        Self { spans, ..Self::over(wire, 0) }
    }

    /// The memory of the list, empty.
    pub(super) fn into_spans(self) -> Vec<Span> {
        let mut spans = self.spans;
        spans.clear();
        spans
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

    /// Whether a pair has one of these names, whatever the case of its ASCII letters.
    #[inline]
    pub fn contains_any_ignoring_case<const COUNT: usize>(&self, names: [&[u8]; COUNT]) -> bool {
        let is_one = |span: &Span| names.iter().any(|name| name.len() == span.name_len as usize);
        let is_named = |other: &[u8]| names.iter().any(|name| name.eq_ignore_ascii_case(other));
        self.spans.iter().any(|span| is_one(span) && is_named(self.bytes(span.name_start, span.name_len)))
    }

    /// Whether any name or value holds this byte.
    pub fn contains_byte(&self, byte: u8) -> bool {
        if !self.in_order {
            return self.iter().any(|(name, value)| name.contains(&byte) || value.contains(&byte));
        }
        // One search over each buffer is much faster than one in each name and value. What it finds between pairs, in their lengths
        // for example, does not count.
        let within_wire = memchr::memchr_iter(byte, &self.wire);
        let within_added = memchr::memchr_iter(byte, &self.added).map(|at| self.wire.len() + at);
        within_wire.chain(within_added).any(|at| {
            let pair = self.spans.partition_point(|span| (span.value_start + span.value_len) as usize <= at);
            self.spans.get(pair).is_some_and(|span| span.name_start as usize <= at)
        })
    }

    /// Keeps the pairs for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let mut spans = std::mem::take(&mut self.spans);
        spans.retain(|span| {
            let (name, value) = self.pair(span);
            keep(name, value)
        });
        self.spans = spans;
    }

    /// Removes all pairs. The memory for added ones is kept for the next.
    pub fn clear(&mut self) {
        self.wire = Bytes::new();
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
    /// A pair of which nothing lies between name and value, in a buffer of at most 2³¹ bytes.
    #[inline]
    pub(super) fn side_by_side(name: usize, value: usize, end: usize) -> Self {
        Self {
            name_start: name as u32,
            name_len: (value - name) as u32,
            value_start: value as u32,
            value_len: (end - value) as u32,
        }
    }
}

/// With some room, since most copies are made to be added to.
impl Clone for Pairs {
    fn clone(&self) -> Self {
        const ROOM: (usize, usize) = (4, 128);
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
    fn a_byte_is_found_in_names_and_values_wherever_they_lie() {
        let mut pairs = Pairs::over(Bytes::from_static(b"NvN-v"), 2);
        pairs.push_span((0, 1), (1, 1));
        pairs.push_span((2, 1), (4, 1));
        pairs.push("", "x");
        assert!(pairs.contains_byte(b'N') && pairs.contains_byte(b'v') && pairs.contains_byte(b'x'));
        assert!(!pairs.contains_byte(b'-') && !pairs.contains_byte(0));
    }

    #[test]
    fn a_byte_between_pairs_hides_none_within_them_in_whatever_order_they_stand() {
        for order in [[0, 3, 6], [6, 3, 0], [3, 6, 0]] {
            for holder in [0, 3, 6] {
                let mut wire = *b"Nv-Nv-Nv-";
                wire[holder + 1] = b'-';
                let mut pairs = Pairs::over(Bytes::copy_from_slice(&wire), 3);
                order.into_iter().for_each(|start| pairs.push_span((start, 1), (start + 1, 1)));
                let spans = [0, 3, 6].map(|start| Span::side_by_side(start, start + 1, start + 2));
                let mut found = Pairs::found(Bytes::copy_from_slice(&wire), spans.into());
                assert!(found.contains_byte(b'-'), "{holder}");
                found.retain(|_, value| value != b"-");
                found.push("", "");
                assert!(!found.contains_byte(b'-'), "{holder}");
                found.push("x", "-");
                assert!(found.contains_byte(b'-') && found.contains_byte(b'x'), "{holder}");
                assert!(pairs.contains_byte(b'-'), "{order:?}, {holder}");
                pairs.retain(|_, value| value != b"-");
                assert!(!pairs.contains_byte(b'-'), "{order:?}, {holder}");
            }
        }
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
        assert!(pairs.contains_any_ignoring_case([b"x", b"aB"]) && !pairs.contains_any_ignoring_case([b"b", b"AC"]));
    }

    #[test]
    #[should_panic(expected = "its buffer at 3")]
    fn a_span_outside_the_buffer_is_refused() {
        Pairs::over(Bytes::from_static(b"AbC"), 1).push_span((2, 1), (3, 1));
    }
}
