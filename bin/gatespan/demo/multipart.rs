//! The file in an uploaded form (`multipart/form-data`, RFC 7578), found while it streams: no more than a boundary's length is held.

use gatespan::Error;
use memchr::memmem;

/// What the head of the part may have, in bytes.
const MAX_PART_HEAD_LEN: usize = 16 * 1024;

/// The longest boundary (RFC 2046 5.1.1).
const MAX_BOUNDARY_LEN: usize = 70;

/// A request's body on its way: the first part of a form, or all of it where it is no form.
#[derive(Debug)]
pub(crate) struct UploadedFile {
    place: Place,
    /// What ends the part: a line end, two hyphens and the boundary.
    delimiter: Vec<u8>,
    /// What can't be told apart yet: a head that is not complete, or what may be the beginning of a delimiter.
    held: Vec<u8>,
    name: Option<String>,
}

#[derive(Debug, PartialEq, Eq)]
enum Place {
    /// No form: everything is the file.
    Whole,
    /// Before the first part, or in its head.
    Head,
    File,
    /// After the file. Nothing is of interest any more.
    After,
}

impl UploadedFile {
    pub(crate) fn new(content_type: &[u8]) -> Self {
        match boundary(content_type) {
            Some(boundary) => Self {
                place: Place::Head,
                delimiter: [b"\r\n--", boundary].concat(),
                // RFC 2046 5.1.1: the first delimiter has no line end before it where there is no preamble.
                held: b"\r\n".to_vec(),
                name: None,
            },
            None => Self { place: Place::Whole, delimiter: Vec::new(), held: Vec::new(), name: None },
        }
    }

    /// Takes a piece of the body and hands on what of it belongs to the file.
    pub(crate) fn push(&mut self, piece: &[u8], take: &mut impl FnMut(&[u8])) -> Result<(), Error> {
        match self.place {
            Place::Whole => {
                take(piece);
                return Ok(());
            }
            Place::After => return Ok(()),
            Place::Head | Place::File => self.held.extend_from_slice(piece),
        }
        if self.place == Place::Head && !self.find_file()? {
            return Ok(());
        }
        if let Some(end) = memmem::find(&self.held, &self.delimiter) {
            take(&self.held[..end]);
            self.held.clear();
            self.place = Place::After;
        } else {
            let certain = self.held.len().saturating_sub(self.delimiter.len() - 1);
            take(&self.held[..certain]);
            self.held.drain(..certain);
        }
        Ok(())
    }

    /// The name that the form gives the file, if it is a form.
    pub(crate) fn finish(self) -> Result<Option<String>, Error> {
        match self.place {
            Place::Whole | Place::After => Ok(self.name),
            Place::Head | Place::File => {
                Err(bad("expected a delimiter after the form's file, got the end of the body"))
            }
        }
    }

    /// Takes the first delimiter and the head of the part off what is held; false when they are not complete.
    fn find_file(&mut self) -> Result<bool, Error> {
        let head = match memmem::find(&self.held, &self.delimiter) {
            Some(start) => start + self.delimiter.len(),
            None => self.held.len(),
        };
        let Some(end) = memmem::find(&self.held[head..], b"\r\n\r\n") else {
            if self.held.len() > MAX_PART_HEAD_LEN {
                return Err(bad("expected the head of the form's file to be short, got more than 16 KiB"));
            }
            return Ok(false);
        };
        self.name = file_name(&self.held[head..head + end]);
        self.held.drain(..head + end + 4);
        self.place = Place::File;
        Ok(true)
    }
}

fn bad(message: &'static str) -> Error {
    Error::new(message).with_status(400)
}

/// The boundary that a Content-Type names, `None` where the body is no form.
fn boundary(content_type: &[u8]) -> Option<&[u8]> {
    let mut parts = content_type.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
    if !parts.next()?.eq_ignore_ascii_case(b"multipart/form-data") {
        return None;
    }
    let (_, value) = parts
        .filter_map(|part| part.split_at_checked("boundary=".len()))
        .find(|(name, _)| name.eq_ignore_ascii_case(b"boundary="))?;
    let value = value.strip_prefix(b"\"").and_then(|value| value.strip_suffix(b"\"")).unwrap_or(value);
    (1..=MAX_BOUNDARY_LEN).contains(&value.len()).then_some(value)
}

/// The file's name in the head of its part (RFC 7578 4.2), as browsers send it.
fn file_name(head: &[u8]) -> Option<String> {
    let start = memmem::find(head, b"filename=\"")? + "filename=\"".len();
    let len = memchr::memchr(b'"', &head[start..])?;
    Some(String::from_utf8_lossy(&head[start..start + len]).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const TYPE: &[u8] = b"multipart/form-data; boundary=xyz";

    fn read(content_type: &[u8], body: &[u8], piece: usize) -> Result<(Option<String>, Vec<u8>), Error> {
        let mut file = UploadedFile::new(content_type);
        let mut content = Vec::new();
        for piece in body.chunks(piece) {
            file.push(piece, &mut |bytes| content.extend_from_slice(bytes))?;
        }
        Ok((file.finish()?, content))
    }

    #[test]
    fn the_file_is_found_however_the_body_is_cut() {
        for content in [&b""[..], b"a", b"\r\n--xy", b"\r\n\r\n--xyz", b"a\r\r\n--xy\r\nb"] {
            let body = [
                b"--xyz\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f.txt\"\r\n\r\n",
                content,
                b"\r\n--xyz--\r\n",
            ]
            .concat();
            // The content ends at the first delimiter, even one that stands in it.
            let expected = memmem::find(content, b"\r\n--xyz").map_or(content, |end| &content[..end]);
            for piece in 1..=body.len() {
                let (name, found) = read(TYPE, &body, piece).unwrap();
                assert_eq!((name.as_deref(), &*found), (Some("f.txt"), expected), "pieces of {piece}");
            }
        }
    }

    #[test]
    fn what_is_no_form_is_the_file() {
        for content_type in [&b""[..], b"text/plain; boundary=xyz", b"multipart/form-data"] {
            assert_eq!(read(content_type, b"--xyz", 2).unwrap(), (None, b"--xyz".to_vec()));
        }
        assert_eq!(boundary(b"Multipart/Form-Data; charset=utf-8; Boundary=\"a b\""), Some(&b"a b"[..]));
    }

    #[test]
    fn a_form_that_ends_early_or_has_no_end_of_head_is_refused() {
        for body in [&b""[..], b"--xyz\r\nA: b\r\n", b"--xyz\r\nA: b\r\n\r\ncontent\r\n--xy"] {
            assert_eq!(read(TYPE, body, 7).unwrap_err().status(), 400);
        }
        assert_eq!(read(TYPE, &[b'a'; 20_000], 1000).unwrap_err().status(), 400);
    }
}
