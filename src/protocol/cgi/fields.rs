//! The header fields of an answer, and how many of them are known to be fit for a head.

use bytes::{BufMut, BytesMut};

use super::response_head::{FieldError, check_field, check_status, put_fields, put_status};
use crate::protocol::Pairs;

/// Header fields in order, each checked once however often it is asked for.
///
/// A field that may not stand in a head is what splits an answer in two, so the writer of heads checks each, whoever gave it. Fields
/// are only changed by the functions of this file, which keep count of those that were: no one else can say that one was.
#[derive(Clone, Default)]
pub struct Fields {
    pairs: Pairs,
    /// So many of the first have passed [`check_field`].
    checked: usize,
}

impl Fields {
    /// The fields, as they are.
    pub fn pairs(&self) -> &Pairs {
        &self.pairs
    }

    /// Adds a field at the end, to be checked.
    pub fn push(&mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) {
        self.pairs.push(name, value);
    }

    /// Adds a Content-Length at the end. There is nothing to check about a number.
    pub fn push_content_length(&mut self, len: u64) {
        if self.checked == self.pairs.len() {
            self.checked += 1;
        }
        self.pairs.push("Content-Length", digits(len, &mut [0; 20]));
    }

    /// Keeps the fields for which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&[u8], &[u8]) -> bool) {
        let (mut seen, mut removed) = (0, 0);
        self.pairs.retain(|name, value| {
            let keeps = keep(name, value);
            removed += usize::from(!keeps && seen < self.checked);
            seen += 1;
            keeps
        });
        self.checked -= removed;
    }

    /// Checks those that were not checked yet.
    ///
    /// # Errors
    ///
    /// That of [`check_field`] for the first that may not stand in a head.
    pub fn check(&mut self) -> Result<(), FieldError> {
        self.check_rest()?;
        self.checked = self.pairs.len();
        Ok(())
    }

    fn check_rest(&self) -> Result<(), FieldError> {
        if self.checked == self.pairs.len() {
            return Ok(());
        }
        self.pairs.iter().skip(self.checked).try_for_each(|(name, value)| check_field(name, value))
    }

    /// As [`encode_head`](super::encode_head).
    ///
    /// # Errors
    ///
    /// When the status or a field would not be read as what it is. Nothing is written then.
    pub fn encode_head(&self, status_code: u16, reason: &[u8], out: &mut BytesMut) -> Result<(), FieldError> {
        self.check_rest()?;
        check_status(status_code, reason)?;
        out.reserve(256);
        put_status(status_code, reason, out);
        put_fields(self.pairs.iter(), out);
        out.put_slice(b"\r\n");
        Ok(())
    }

    /// As [`encode_head_status_last`](super::encode_head_status_last).
    ///
    /// # Errors
    ///
    /// As [`Fields::encode_head`].
    pub fn encode_head_status_last(
        &self,
        status_code: u16,
        reason: &[u8],
        out: &mut BytesMut,
    ) -> Result<(), FieldError> {
        super::encode_head_status_last(status_code, reason, self.pairs.iter(), out)
    }
}

impl From<Pairs> for Fields {
    fn from(pairs: Pairs) -> Self {
        Self { pairs, checked: 0 }
    }
}

/// What was checked makes no difference.
impl PartialEq for Fields {
    fn eq(&self, other: &Self) -> bool {
        self.pairs == other.pairs
    }
}

impl Eq for Fields {}

/// A number in decimal digits, in memory that is there already: nearly every answer has one.
fn digits(mut number: u64, memory: &mut [u8; 20]) -> &[u8] {
    let mut start = memory.len();
    loop {
        start -= 1;
        memory[start] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &memory[start..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(list: &[(&str, &str)]) -> Fields {
        list.iter().copied().collect::<Pairs>().into()
    }

    fn encode(fields: &Fields) -> Result<String, FieldError> {
        let mut out = BytesMut::new();
        let result = fields.encode_head(200, b"OK", &mut out);
        assert!(result.is_ok() || out.is_empty(), "{out:?}");
        result.map(|()| String::from_utf8(out.into()).unwrap())
    }

    #[test]
    fn a_field_that_comes_after_the_check_is_checked_when_it_is_written() {
        let mut fields = fields(&[("A", "1"), ("B", "2"), ("C", "3")]);
        fields.check().unwrap();
        fields.push("X", "a\r\nSet-Cookie: b");
        encode(&fields).unwrap_err();
        // It moves to where a checked one stood.
        fields.retain(|name, _| name != b"B");
        encode(&fields).unwrap_err();
        fields.check().unwrap_err();
        fields.retain(|name, _| name == b"X");
        encode(&fields).unwrap_err();
        fields.push_content_length(1);
        encode(&fields).unwrap_err();
        fields.retain(|name, _| name != b"X");
        assert_eq!(encode(&fields).unwrap(), "Status: 200 OK\r\nContent-Length: 1\r\n\r\n");
    }

    #[test]
    fn nothing_that_was_never_checked_is_written_unseen() {
        encode(&fields(&[("A", "1"), ("B\r\n", "2")])).unwrap_err();
        assert_eq!(encode(&fields(&[("A", "1")])).unwrap(), "Status: 200 OK\r\nA: 1\r\n\r\n");
    }

    #[test]
    fn a_content_length_is_written_in_decimal_digits() {
        for (number, text) in [(0, "0"), (7, "7"), (10, "10"), (u64::MAX, "18446744073709551615")] {
            let mut fields = Fields::default();
            fields.push_content_length(number);
            assert_eq!(fields.pairs().last(b"Content-Length"), Some(text.as_bytes()));
        }
    }
}
