//! Name-value pairs as a stream of records brings them, cut anywhere: walked over without being kept (FastCGI 3.4).

/// Where in a stream of pairs one stands. It keeps no more than the first bytes of one name and its value.
#[derive(Debug, Clone, Default)]
pub(super) struct PairStream {
    lengths: Vec<u8>,
    /// Of the pair at hand, once its lengths are known: how much of its name and of its value is still to come.
    left: Option<(u32, u32)>,
    name: Vec<u8>,
    value: Vec<u8>,
    /// How many bytes of the pair at hand have come.
    begun: u64,
    pairs: u64,
    len: u64,
}

impl PairStream {
    /// Walks over what comes next. `each` is given the first [`KEPT_NAME`] bytes of each name and the first [`KEPT_VALUE`] of its value.
    pub(super) fn feed(&mut self, mut bytes: &[u8], mut each: impl FnMut(&[u8], &[u8])) {
        self.len += bytes.len() as u64;
        loop {
            // A pair that is here in one piece need not be put together.
            if self.begun == 0
                && let Some((name, value, rest)) = first_pair(bytes)
            {
                each(&name[..name.len().min(KEPT_NAME)], &value[..value.len().min(KEPT_VALUE)]);
                self.pairs += 1;
                bytes = rest;
                continue;
            }
            let Some((name_left, value_left)) = &mut self.left else {
                match lengths(&self.lengths) {
                    Some(left) => self.left = Some(left),
                    None => {
                        let [first, rest @ ..] = bytes else { return };
                        self.lengths.push(*first);
                        self.begun += 1;
                        bytes = rest;
                    }
                }
                continue;
            };
            for (left, kept, limit) in
                [(name_left, &mut self.name, KEPT_NAME), (value_left, &mut self.value, KEPT_VALUE)]
            {
                let (now, rest) = bytes.split_at((*left as usize).min(bytes.len()));
                let room = limit.saturating_sub(kept.len());
                kept.extend_from_slice(&now[..now.len().min(room)]);
                *left -= now.len() as u32;
                self.begun += now.len() as u64;
                bytes = rest;
                if *left > 0 {
                    return;
                }
            }
            each(&self.name, &self.value);
            self.pairs += 1;
            let (pairs, len) = (self.pairs, self.len);
            let (mut lengths, mut name, mut value) = Default::default();
            std::mem::swap(&mut lengths, &mut self.lengths);
            std::mem::swap(&mut name, &mut self.name);
            std::mem::swap(&mut value, &mut self.value);
            lengths.clear();
            name.clear();
            value.clear();
            *self = Self { lengths, left: None, name, value, begun: 0, pairs, len };
        }
    }

    /// How many bytes have come of a pair that is not complete: 0 between pairs.
    pub(super) fn begun(&self) -> u64 {
        self.begun
    }

    /// How many pairs were complete.
    pub(super) fn pairs(&self) -> u64 {
        self.pairs
    }

    /// How many bytes have come in all.
    pub(super) fn len(&self) -> u64 {
        self.len
    }
}

/// The lengths of a name and of its value; `None` when more bytes are needed.
fn lengths(bytes: &[u8]) -> Option<(u32, u32)> {
    let (name, rest) = length(bytes)?;
    let (value, _) = length(rest)?;
    Some((name, value))
}

/// The name and the value of the pair that stands first, and what follows it; `None` when not all of it is here.
fn first_pair(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let (name, rest) = length(bytes)?;
    let (value, rest) = length(rest)?;
    let (name, rest) = rest.split_at_checked(name as usize)?;
    let (value, rest) = rest.split_at_checked(value as usize)?;
    Some((name, value, rest))
}

fn length(bytes: &[u8]) -> Option<(u32, &[u8])> {
    match bytes {
        [short @ ..0x80, rest @ ..] => Some(((*short).into(), rest)),
        [a, b, c, d, rest @ ..] => Some((u32::from_be_bytes([*a & 0x7f, *b, *c, *d]), rest)),
        _ => None,
    }
}

/// How many bytes of a name are given out.
pub(super) const KEPT_NAME: usize = 256;

/// How many bytes of a value are given out.
pub(super) const KEPT_VALUE: usize = 2048;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::protocol::fastcgi::name_value::{NameValues, encode};

    fn walk(chunks: &[&[u8]]) -> (Vec<(Vec<u8>, Vec<u8>)>, PairStream) {
        let (mut stream, mut found) = (PairStream::default(), Vec::new());
        for chunk in chunks {
            stream.feed(chunk, |name, value| found.push((name.to_vec(), value.to_vec())));
        }
        (found, stream)
    }

    #[test]
    fn a_pair_of_gigabytes_is_not_kept() {
        let (found, stream) = walk(&[b"\xff\xff\xff\xff\xff\xff\xff\xff", &[b'x'; 100_000]]);
        assert!(found.is_empty() && stream.name.len() == KEPT_NAME);
        assert_eq!((stream.begun(), stream.left), (100_008, Some((0x7fff_ffff - 100_000, 0x7fff_ffff))));
    }

    #[test]
    fn pairs_without_bytes_are_pairs() {
        let (found, stream) = walk(&[b"\0\0\0", b"\0"]);
        assert_eq!((found.len(), stream.pairs(), stream.begun(), stream.len()), (2, 2, 0, 4));
    }

    proptest! {
        #[test]
        fn wherever_it_is_cut_it_finds_what_the_decoder_finds(
            pairs in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 0..200)), 0..6),
            cut in 0..500_usize,
        ) {
            let mut bytes = Vec::new();
            pairs.iter().for_each(|(name, value)| encode(name, value, &mut bytes).unwrap());
            let (first, second) = bytes.split_at(cut.min(bytes.len()));
            let (found, stream) = walk(&[first, second]);
            let decoded: Vec<_> = NameValues::new(&bytes).map(|pair| pair.map(|(n, v)| (n.to_vec(), v.to_vec())).unwrap()).collect();
            prop_assert_eq!((&found, stream.begun(), stream.pairs() as usize), (&decoded, 0, found.len()));
        }
    }
}
