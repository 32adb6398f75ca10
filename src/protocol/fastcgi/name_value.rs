//! Name-value pairs, the content of PARAMS, GET_VALUES and GET_VALUES_RESULT (FastCGI 3.4).
//!
//! A pair is the length of its name, the length of its value, the name and the value. A length is one byte up to 127 and
//! else four with the highest bit set.

use bytes::BufMut;
use nom::number::complete::{be_u8, be_u32};
use nom::{IResult, Parser};

use super::record::MAX_PADDED_CONTENT_LEN;
use crate::protocol::pairs::{self, Pairs};

/// Decodes a complete buffer of pairs, without copying any. More than `max_pairs` is an error.
///
/// Memory for the list is asked for by the buffer's length, so that mostly it is asked for once.
pub fn decode(buffer: Vec<u8>, max_pairs: usize) -> Result<Pairs, NameValueError> {
    decode_into(Vec::new(), buffer, max_pairs)
}

/// The same, with memory for the list: an empty one.
pub(super) fn decode_into(
    mut spans: Vec<pairs::Span>,
    buffer: Vec<u8>,
    max_pairs: usize,
) -> Result<Pairs, NameValueError> {
    spans.resize((buffer.len() / USUAL_PAIR_LEN + 1).min(max_pairs), pairs::Span::NONE);
    let zeros_beside = find(&buffer, max_pairs, &mut spans)?;
    Ok(Pairs::found(buffer, spans, zeros_beside))
}

/// Finds the pairs, in the place of those that `spans` holds, and says how many zero bytes there are in their lengths.
fn find(bytes: &[u8], max_pairs: usize, spans: &mut Vec<pairs::Span>) -> Result<usize, NameValueError> {
    let (mut offset, mut count, mut zeros) = (0, 0, 0);
    loop {
        let short = find_short(bytes, offset, &mut spans[count..]);
        offset = short.end;
        count += short.count;
        zeros += short.zeros;
        if offset == bytes.len() {
            spans.truncate(count);
            return Ok(zeros);
        }
        let Span { name, value, end } = any_span(bytes, offset)?;
        if count == max_pairs {
            return Err(NameValueError::TooManyPairs { limit: max_pairs });
        }
        if count == spans.len() {
            spans.resize((count * 2).clamp(1, max_pairs), pairs::Span::NONE);
        }
        spans[count] = pairs::Span::side_by_side(name, value - name, end - value);
        count += 1;
        zeros += bytes[offset..name].iter().filter(|byte| **byte == 0).count();
        offset = end;
    }
}

/// How many pairs were found, where the last of them ends, and how many of their lengths are zero.
struct Short {
    count: usize,
    end: usize,
    zeros: usize,
}

/// Finds the pairs whose lengths are of one byte each, as nearly all are, up to the first that is none or is not whole, or to the last place.
///
/// A function of its own, so that all that its loop needs is in registers.
#[inline(never)]
fn find_short(bytes: &[u8], start: usize, places: &mut [pairs::Span]) -> Short {
    let (mut rest, mut count, mut zeros) = (&bytes[start..], 0, 0);
    for place in places {
        let [name_len, value_len, pair @ ..] = rest else { break };
        if (name_len | value_len) >= 0x80 {
            break;
        }
        let Some(after) = pair.get(usize::from(*name_len) + usize::from(*value_len)..) else { break };
        *place = pairs::Span::side_by_side(bytes.len() - pair.len(), (*name_len).into(), (*value_len).into());
        zeros += usize::from(*name_len == 0) + usize::from(*value_len == 0);
        count += 1;
        rest = after;
    }
    Short { count, end: bytes.len() - rest.len(), zeros }
}

/// How many bytes a variable of a web server has at least in the middle: its two lengths, its name and its value. nginx comes to some 32.
const USUAL_PAIR_LEN: usize = 24;

/// Walks over the pairs of a complete buffer. After an error there is nothing more.
#[derive(Debug, Clone)]
pub struct NameValues<'a> {
    buffer: &'a [u8],
    offset: usize,
}

impl<'a> NameValues<'a> {
    /// Starts at the first pair of `buffer`.
    pub fn new(buffer: &'a [u8]) -> Self {
        Self { buffer, offset: 0 }
    }
}

/// The pair at `offset`, whatever its lengths.
fn any_span(buffer: &[u8], offset: usize) -> Result<Span, NameValueError> {
    let input = &buffer[offset..];
    let Ok((rest, (name_len, value_len))) = lengths(input) else {
        return Err(NameValueError::CutLengths { offset, left: input.len() });
    };
    // Two lengths of 31 bits overflow 32, so the sum is made in 64.
    let needed = u64::from(name_len) + u64::from(value_len);
    if needed > rest.len() as u64 {
        return Err(NameValueError::CutPair { offset, needed, left: rest.len() });
    }
    let name = buffer.len() - rest.len();
    let value = name + name_len as usize;
    Ok(Span { name, value, end: value + value_len as usize })
}

impl<'a> Iterator for NameValues<'a> {
    type Item = Result<(&'a [u8], &'a [u8]), NameValueError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.offset == self.buffer.len() {
            return None;
        }
        let span = any_span(self.buffer, self.offset);
        self.offset = span.as_ref().map_or(self.buffer.len(), |span| span.end);
        Some(span.map(|span| (&self.buffer[span.name..span.value], &self.buffer[span.value..span.end])))
    }
}

/// Where a name starts, where its value starts and where that ends.
struct Span {
    name: usize,
    value: usize,
    end: usize,
}

/// The lengths of a name and of its value.
fn lengths(input: &[u8]) -> IResult<&[u8], (u32, u32), ()> {
    (length, length).parse(input)
}

#[inline]
fn length(input: &[u8]) -> IResult<&[u8], u32, ()> {
    match be_u8(input)? {
        (rest, short @ ..0x80) => Ok((rest, short.into())),
        _ => be_u32.map(|long| long & MAX_LEN).parse(input),
    }
}

/// Writes one pair.
#[inline]
pub fn encode(name: &[u8], value: &[u8], out: &mut impl BufMut) -> Result<(), EncodeError> {
    match (name.len(), value.len()) {
        // Nearly all lengths are of one byte.
        (name_len @ ..0x80, value_len @ ..0x80) => out.put_slice(&[name_len as u8, value_len as u8]),
        _ => encode_any_lengths(name, value, out)?,
    }
    out.put_slice(name);
    out.put_slice(value);
    Ok(())
}

fn encode_any_lengths(name: &[u8], value: &[u8], out: &mut impl BufMut) -> Result<(), EncodeError> {
    for part in [name, value] {
        match u32::try_from(part.len()) {
            Ok(short @ ..0x80) => out.put_u8(short as u8),
            Ok(long @ ..=MAX_LEN) => out.put_u32(long | !MAX_LEN),
            _ => return Err(EncodeError::TooLong { len: part.len(), limit: MAX_LEN as usize }),
        }
    }
    Ok(())
}

/// How many bytes [`encode`] writes.
fn encoded_len(name: &[u8], value: &[u8]) -> usize {
    let length = |part: &[u8]| if part.len() < 0x80 { 1_usize } else { 4 };
    (length(name) + length(value)).saturating_add(name.len()).saturating_add(value.len())
}

/// Pairs, encoded and laid out in the contents of records.
///
/// A record ends where a pair ends, since some receivers read each record for itself; only a pair that is longer than a
/// record goes on in the next. Content and padding stay at or under 65,535 bytes together.
#[derive(Debug, Clone, Default)]
pub struct Contents {
    encoded: Vec<u8>,
    /// Where in `encoded` a record ends. The end of the last one is not among them.
    ends: Vec<usize>,
}

impl Contents {
    /// Lays out `pairs`. More than `max_len` bytes altogether is an error.
    pub fn lay_out<'a>(
        pairs: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
        max_len: usize,
    ) -> Result<Self, EncodeError> {
        let mut encoded = Vec::with_capacity(USUAL_LEN);
        let mut ends = Vec::new();
        let mut start = 0;
        for (name, value) in pairs {
            let pair_len = encoded_len(name, value);
            let len = encoded.len().saturating_add(pair_len);
            if len > max_len {
                return Err(EncodeError::TooLong { len, limit: max_len });
            }
            if len - start > MAX_PADDED_CONTENT_LEN && encoded.len() > start {
                start = encoded.len();
                ends.push(start);
            }
            encode(name, value, &mut encoded)?;
            while encoded.len() - start > MAX_PADDED_CONTENT_LEN {
                start += MAX_PADDED_CONTENT_LEN;
                ends.push(start);
            }
        }
        Ok(Self { encoded, ends })
    }

    /// The content of each record. None is empty, so there is none when there are no pairs.
    pub fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let mut start = 0;
        self.ends.iter().copied().chain([self.encoded.len()]).filter_map(move |end| {
            let content = &self.encoded[start..end];
            start = end;
            (!content.is_empty()).then_some(content)
        })
    }
}

/// How many bytes a browser's request comes to, with some to spare. glibc's malloc is slower for more.
const USUAL_LEN: usize = 1024;

/// Why a buffer is not pairs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameValueError {
    /// The buffer ends within the lengths.
    #[error("expected two lengths in the pair at byte {offset}, got {left} bytes")]
    CutLengths {
        /// Where the pair starts.
        offset: usize,
        /// Bytes from there to the end.
        left: usize,
    },
    /// The buffer ends within the name or the value.
    #[error("expected {needed} bytes of name and value in the pair at byte {offset}, got {left}")]
    CutPair {
        /// Where the pair starts.
        offset: usize,
        /// Bytes that the lengths announce.
        needed: u64,
        /// Bytes from the end of the lengths to the end.
        left: usize,
    },
    /// There are more pairs than allowed.
    #[error("expected at most {limit} pairs, got more")]
    TooManyPairs {
        /// The limit.
        limit: usize,
    },
}

/// Why pairs cannot be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// A name, a value or all together are over a limit.
    #[error("expected names and values of at most {limit} bytes, got {len}")]
    TooLong {
        /// How long it is, as far as it was counted.
        len: usize,
        /// How long it may be.
        limit: usize,
    },
}

/// The longest name and the longest value: 31 bits (FastCGI 3.4).
pub const MAX_LEN: u32 = 0x7fff_ffff;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn list(pairs: &Pairs) -> Vec<(Vec<u8>, Vec<u8>)> {
        pairs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect()
    }

    #[test]
    fn pairs_are_these_bytes() {
        let long = "v".repeat(128);
        let long_bytes = [&b"\x01\x80\0\0\x80n"[..], long.as_bytes()].concat();
        let both_bytes = [&b"\x80\0\0\x80\x80\0\0\x80"[..], long.as_bytes(), long.as_bytes()].concat();
        let list = |pairs: &[(&str, &str)]| pairs.iter().copied().collect::<Pairs>();
        let table = [
            (&b""[..], list(&[])),
            // FastCGI appendix B.
            (b"\x0b\x02SERVER_PORT80", list(&[("SERVER_PORT", "80")])),
            (b"\x0b\x02SERVER_PORT80\x0b\0SERVER_ADDR", list(&[("SERVER_PORT", "80"), ("SERVER_ADDR", "")])),
            (b"\0\0", list(&[("", "")])),
            (b"\0\x01x", list(&[("", "x")])),
            (&long_bytes, list(&[("n", &long)])),
            (&both_bytes, list(&[(&long, &long)])),
        ];
        for (bytes, pairs) in table {
            let decoded = decode(bytes.to_vec(), 2).unwrap();
            assert_eq!(decoded, pairs);
            let mut encoded = Vec::new();
            let mut len = 0;
            for (name, value) in pairs.iter() {
                encode(name, value, &mut encoded).unwrap();
                len += encoded_len(name, value);
            }
            assert_eq!((&encoded[..], encoded.len()), (bytes, len));
        }
    }

    #[test]
    fn a_short_length_may_be_written_in_four_bytes() {
        let pairs = decode(b"\x80\0\0\x01\x80\0\0\x02nvv".to_vec(), 1).unwrap();
        assert_eq!(list(&pairs), [(b"n".to_vec(), b"vv".to_vec())]);
    }

    #[test]
    fn a_pair_that_is_cut_is_an_error_that_names_its_offset() {
        let bytes = b"\x01\x01ab\x80\0\0\x03\x02cccdd";
        for cut in 5..bytes.len() {
            let error = decode(bytes[..cut].to_vec(), 2).unwrap_err();
            let expected = match cut {
                ..9 => NameValueError::CutLengths { offset: 4, left: cut - 4 },
                _ => NameValueError::CutPair { offset: 4, needed: 5, left: cut - 9 },
            };
            assert_eq!(error, expected, "cut at {cut}");
        }
    }

    #[test]
    fn cve_2025_23016_lengths_of_31_bits_do_not_overflow() {
        let bytes = b"\xff\xff\xff\xff\xff\xff\xff\xffxyz".to_vec();
        let expected = NameValueError::CutPair { offset: 0, needed: 0xffff_fffe, left: 3 };
        assert_eq!(decode(bytes, 10), Err(expected));
        for bytes in [&b"\x01\xff\xff\xff\xffxyz"[..], b"\xff\xff\xff\xff\x01xyz"] {
            let expected = NameValueError::CutPair { offset: 0, needed: 0x8000_0000, left: 3 };
            assert_eq!(decode(bytes.to_vec(), 10), Err(expected));
        }
    }

    #[test]
    fn the_number_of_pairs_is_limited() {
        let bytes = vec![0; 2 * 100];
        assert_eq!(decode(bytes.clone(), 100).unwrap().len(), 100);
        assert_eq!(decode(bytes, 99), Err(NameValueError::TooManyPairs { limit: 99 }));
    }

    #[test]
    fn records_end_where_pairs_end() {
        let value = vec![b'v'; 40_000];
        let pairs = [(&b"a"[..], &value[..]), (b"b", &value), (b"c", b"")];
        let contents = Contents::lay_out(pairs, usize::MAX).unwrap();
        let counts = contents.iter().map(|content| decode(content.to_vec(), 9).unwrap().len());
        assert_eq!(counts.collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn a_pair_longer_than_a_record_goes_on_in_the_next() {
        let value = vec![b'v'; 200_000];
        let pairs = [(&b"a"[..], &b"1"[..]), (b"b", &value), (b"c", b"")];
        let contents = Contents::lay_out(pairs, usize::MAX).unwrap();
        let contents: Vec<_> = contents.iter().collect();
        assert_eq!(contents[0], b"\x01\x01a1");
        assert!(contents.iter().all(|content| content.len() <= MAX_PADDED_CONTENT_LEN));
        assert_eq!(decode(contents.concat(), 9).unwrap(), pairs.into_iter().collect());
    }

    #[test]
    fn the_length_of_all_pairs_is_limited() {
        let pairs = [(&b"name"[..], &b"value"[..]); 2];
        assert!(Contents::lay_out(pairs, 22).is_ok());
        let error = Contents::lay_out(pairs, 21).unwrap_err();
        assert_eq!(error, EncodeError::TooLong { len: 22, limit: 21 });
        assert_eq!(Contents::lay_out([], 0).unwrap().iter().count(), 0);
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(pairs in vec((vec(any::<u8>(), 0..300), vec(any::<u8>(), 0..300)), 0..40)) {
            let mut encoded = Vec::new();
            for (name, value) in &pairs {
                encode(name, value, &mut encoded).unwrap();
            }
            prop_assert_eq!(list(&decode(encoded, 40).unwrap()), pairs);
        }

        #[test]
        fn no_bytes_panic(bytes in vec(any::<u8>(), 0..400)) {
            let _ = decode(bytes, 50);
        }

        #[test]
        fn laid_out_pairs_are_the_same_pairs(lens in vec((0..200_usize, 0..90_000_usize), 0..8)) {
            let buffer = vec![b'x'; 90_000];
            let pairs: Vec<_> = lens.iter().map(|(name, value)| (&buffer[..*name], &buffer[..*value])).collect();
            let contents = Contents::lay_out(pairs.iter().copied(), usize::MAX).unwrap();
            let contents: Vec<_> = contents.iter().collect();
            prop_assert!(contents.iter().all(|content| !content.is_empty() && content.len() <= MAX_PADDED_CONTENT_LEN));
            prop_assert_eq!(decode(contents.concat(), 8).unwrap(), pairs.into_iter().collect());
        }
    }
}
