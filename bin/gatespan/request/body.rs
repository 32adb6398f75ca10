//! The request's body, made of the options as curl makes it: data of a form, one or more files, parts of multipart/form-data.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use gatespan::application::{InputError, Source};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use tokio::io::{AsyncRead, ReadBuf};

use super::BodyOptions;
use super::outcome::Failure;

/// A body that can be read more than once, as retries need it. Files are read when they are sent.
#[derive(Debug, Clone, Default)]
pub(super) struct Body {
    parts: Vec<Part>,
}

#[derive(Debug, Clone)]
enum Part {
    Bytes(Bytes),
    /// A regular file, and how long it was when the request was made.
    File(PathBuf, u64),
}

/// How much of a file is read at once.
const BLOCK: usize = 64 * 1024;

/// The bytes that stand for themselves in data of a form (RFC 3986 2.3).
const FORM: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

impl Body {
    pub(super) fn of_file(path: &Path) -> Result<Self, Failure> {
        let mut body = Self::default();
        body.push_file(path)?;
        Ok(body)
    }

    pub(super) fn len(&self) -> u64 {
        let len = |part: &Part| match part {
            Part::Bytes(bytes) => bytes.len() as u64,
            Part::File(_, len) => *len,
        };
        self.parts.iter().map(len).sum()
    }

    pub(super) fn reader(&self) -> Reader {
        Reader { parts: self.parts.clone().into(), file: None }
    }

    fn push(&mut self, bytes: impl Into<Bytes>) {
        let bytes = bytes.into();
        if !bytes.is_empty() {
            self.parts.push(Part::Bytes(bytes));
        }
    }

    /// A regular file is read when it is sent; anything else, such as a pipe, can be read only once, and now.
    fn push_file(&mut self, path: &Path) -> Result<(), Failure> {
        let metadata =
            (!is_stdin(path)).then(|| path.metadata()).transpose().map_err(|error| unreadable(path, &error))?;
        match metadata.filter(std::fs::Metadata::is_file) {
            Some(metadata) => {
                // Whether it can be read is better known before anything is sent.
                File::open(path).map_err(|error| unreadable(path, &error))?;
                self.parts.push(Part::File(path.into(), metadata.len()));
            }
            None => self.push(read(path)?),
        }
        Ok(())
    }
}

/// A body on its way.
pub(super) struct Reader {
    parts: std::collections::VecDeque<Part>,
    /// The file that is being read: its path and how much of it is to come.
    file: Option<(PathBuf, File, u64)>,
}

impl Reader {
    /// The next piece, `None` at the end.
    pub(super) fn next(&mut self) -> io::Result<Option<Bytes>> {
        loop {
            if let Some((path, file, left)) = &mut self.file {
                let mut block = vec![0; BLOCK.min(usize::try_from(*left).unwrap_or(BLOCK))];
                if !block.is_empty() {
                    let read = file.read(&mut block)?;
                    if read == 0 {
                        let message = format!("{}: it became {left} bytes shorter while it was sent", path.display());
                        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
                    }
                    block.truncate(read);
                    *left -= read as u64;
                    return Ok(Some(block.into()));
                }
                self.file = None;
            }
            match self.parts.pop_front() {
                None => return Ok(None),
                Some(Part::Bytes(bytes)) => return Ok(Some(bytes)),
                Some(Part::File(path, len)) => {
                    let file = File::open(&path)?;
                    self.file = Some((path, file, len));
                }
            }
        }
    }
}

/// For what is asked through the application interface.
impl Source for Reader {
    fn poll_chunk(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Bytes, InputError>>> {
        Poll::Ready(self.next().map_err(InputError::Io).transpose())
    }
}

/// For the other client.
pub(super) struct Readable {
    reader: Reader,
    piece: Bytes,
}

impl From<Reader> for Readable {
    fn from(reader: Reader) -> Self {
        Self { reader, piece: Bytes::new() }
    }
}

impl AsyncRead for Readable {
    fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = Pin::into_inner(self);
        if this.piece.is_empty() {
            this.piece = this.reader.next()?.unwrap_or_default();
        }
        let piece = this.piece.split_to(this.piece.len().min(buffer.remaining()));
        buffer.put_slice(&piece);
        Poll::Ready(Ok(()))
    }
}

/// The body that the options ask for, with its Content-Type.
pub(super) fn of(options: &BodyOptions) -> Result<Option<(Body, String)>, Failure> {
    if !options.is_any() {
        return Ok(None);
    }
    if !options.forms.is_empty() {
        let boundary = boundary();
        let body = multipart(&options.forms, &boundary)?;
        return Ok(Some((body, format!("multipart/form-data; boundary={boundary}"))));
    }
    let mut body = Body::default();
    let join = |body: &mut Body| {
        if !body.parts.is_empty() {
            body.push(&b"&"[..]);
        }
    };
    for data in &options.data {
        join(&mut body);
        match data.as_bytes().strip_prefix(b"@") {
            Some(path) => {
                let mut bytes = read(Path::new(OsStr::from_bytes(path)))?;
                bytes.retain(|byte| !matches!(byte, b'\r' | b'\n' | 0));
                body.push(bytes);
            }
            None => body.push(data.as_bytes().to_vec()),
        }
    }
    for data in &options.data_binary {
        join(&mut body);
        match data.as_bytes().strip_prefix(b"@") {
            Some(path) => body.push_file(Path::new(OsStr::from_bytes(path)))?,
            None => body.push(data.as_bytes().to_vec()),
        }
    }
    for data in &options.data_raw {
        join(&mut body);
        body.push(data.as_bytes().to_vec());
    }
    for data in &options.data_urlencode {
        join(&mut body);
        body.push(encoded(data.as_bytes())?);
    }
    Ok(Some((body, "application/x-www-form-urlencoded".into())))
}

/// CONTENT, =CONTENT, NAME=CONTENT, @FILE or NAME@FILE: what is content, is encoded.
fn encoded(data: &[u8]) -> Result<Vec<u8>, Failure> {
    let encode = |content: &[u8]| percent_encode(content, FORM).to_string().into_bytes();
    let (name, content) = match data.iter().position(|byte| matches!(byte, b'=' | b'@')) {
        None => return Ok(encode(data)),
        Some(at) if data[at] == b'=' => (&data[..at], data[at + 1..].to_vec()),
        Some(at) => (&data[..at], read(Path::new(OsStr::from_bytes(&data[at + 1..])))?),
    };
    let mut whole = name.to_vec();
    if !name.is_empty() {
        whole.push(b'=');
    }
    whole.extend(encode(&content));
    Ok(whole)
}

/// The parts of a form (RFC 7578).
fn multipart(forms: &[std::ffi::OsString], boundary: &str) -> Result<Body, Failure> {
    let mut body = Body::default();
    for form in forms {
        let part = FormPart::parse(form.as_bytes())?;
        let mut head = format!("--{boundary}\r\nContent-Disposition: form-data; name=\"").into_bytes();
        head.extend(quoted(part.name));
        head.push(b'"');
        if let Some(file_name) = &part.file_name {
            head.extend_from_slice(b"; filename=\"");
            head.extend(quoted(file_name));
            head.push(b'"');
        }
        if let Some(content_type) = part.content_type() {
            head.extend_from_slice(b"\r\nContent-Type: ");
            head.extend_from_slice(content_type);
        }
        head.extend_from_slice(b"\r\n\r\n");
        body.push(head);
        match part.content {
            Content::Text(text) => body.push(text.to_vec()),
            Content::File(path) => body.push_file(Path::new(OsStr::from_bytes(path)))?,
        }
        body.push(&b"\r\n"[..]);
    }
    body.push(format!("--{boundary}--\r\n").into_bytes());
    Ok(body)
}

/// One that no content is likely to hold.
fn boundary() -> String {
    format!("----gatespan-{:016x}{:016x}", fastrand::u64(..), fastrand::u64(..))
}

struct FormPart<'a> {
    name: &'a [u8],
    content: Content<'a>,
    file_name: Option<Vec<u8>>,
    given_type: Option<&'a [u8]>,
}

enum Content<'a> {
    Text(&'a [u8]),
    File(&'a [u8]),
}

impl<'a> FormPart<'a> {
    fn parse(form: &'a [u8]) -> Result<Self, Failure> {
        let wrong = || {
            let message = "expected NAME=CONTENT, NAME=@FILE or NAME=<FILE for -F";
            Failure::new(super::Kind::Usage, format!("{message}, got \"{}\"", form.escape_ascii()))
        };
        let at = form.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or_else(wrong)?;
        let (name, value) = (&form[..at], &form[at + 1..]);
        let (value, given_type, given_name) = attributes(value);
        let is_header_safe = |bytes: &[u8]| !bytes.iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0));
        if !given_type.is_none_or(is_header_safe) {
            return Err(wrong());
        }
        let (content, file_name) = match value.split_first() {
            Some((b'@', path)) => {
                let base = Path::new(OsStr::from_bytes(path)).file_name().unwrap_or(OsStr::new("-"));
                let name = given_name.map_or_else(|| base.as_bytes().to_vec(), <[u8]>::to_vec);
                (Content::File(path), Some(name))
            }
            Some((b'<', path)) => (Content::File(path), given_name.map(<[u8]>::to_vec)),
            _ => (Content::Text(value), given_name.map(<[u8]>::to_vec)),
        };
        Ok(Self { name, content, file_name, given_type })
    }

    /// What was given, and for an upload else what every file is.
    fn content_type(&self) -> Option<&[u8]> {
        self.given_type.or(self.file_name.is_some().then_some(b"application/octet-stream"))
    }
}

/// A value without the `;type=` and `;filename=` at its end, and these.
fn attributes(mut value: &[u8]) -> (&[u8], Option<&[u8]>, Option<&[u8]>) {
    let (mut given_type, mut given_name) = (None, None);
    loop {
        let last = value.iter().rposition(|byte| *byte == b';');
        // A media type has parameters of its own behind a semicolon, so that the last mark counts rather than the last semicolon.
        let found = last.map(|_| {
            let type_at = find_last(value, b";type=");
            let name_at = find_last(value, b";filename=");
            (type_at, name_at)
        });
        match found {
            Some((Some(at), name_at)) if given_type.is_none() && name_at.is_none_or(|name_at| name_at < at) => {
                given_type = Some(&value[at + b";type=".len()..]);
                value = &value[..at];
            }
            Some((_, Some(at))) if given_name.is_none() => {
                given_name = Some(&value[at + b";filename=".len()..]);
                value = &value[..at];
            }
            _ => return (value, given_type, given_name),
        }
    }
}

fn find_last(bytes: &[u8], part: &[u8]) -> Option<usize> {
    bytes.windows(part.len()).rposition(|window| window == part)
}

/// A name between double quotes: browsers encode these bytes so (HTML, multipart/form-data encoding algorithm).
fn quoted(name: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(name.len());
    for byte in name {
        match byte {
            b'"' => out.extend_from_slice(b"%22"),
            b'\r' => out.extend_from_slice(b"%0D"),
            b'\n' => out.extend_from_slice(b"%0A"),
            byte => out.push(*byte),
        }
    }
    out
}

/// All of a file, or of standard input.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let read = match is_stdin(path) {
        true => io::stdin().lock().read_to_end(&mut bytes),
        false => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    read.map(|_| bytes).map_err(|error| unreadable(path, &error))
}

fn is_stdin(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    match is_stdin(path) {
        true => Failure::local(format!("standard input could not be read: {error}")),
        false => Failure::local(format!("{}: could not be read: {error}", path.display())),
    }
}

/// All of it, for the query.
pub(super) fn to_bytes(body: &Body) -> Result<Vec<u8>, Failure> {
    let mut all = Vec::new();
    let mut reader = body.reader();
    while let Some(piece) = reader.next().map_err(|error| Failure::local(error.to_string()))? {
        all.extend_from_slice(&piece);
    }
    Ok(std::ffi::OsString::from_vec(all).into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(body: &Body) -> String {
        String::from_utf8(to_bytes(body).unwrap()).unwrap()
    }

    #[test]
    fn data_is_encoded_as_curl_has_it() {
        for (data, expected) in
            [("a b", "a%20b"), ("=a&b", "a%26b"), ("n=\u{fc}/~", "n=%C3%BC%2F~"), ("n=", "n="), ("", "")]
        {
            assert_eq!(encoded(data.as_bytes()).unwrap(), expected.as_bytes(), "{data}");
        }
        assert!(encoded(b"n@/no/such/file").is_err());
    }

    #[test]
    fn a_multipart_body_is_these_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a\"b.txt");
        std::fs::write(&path, "content").unwrap();
        let path = path.to_str().unwrap();
        let forms = [
            "a=1;type=text/plain; charset=utf-8".to_owned(),
            format!("b=@{path}"),
            format!("c=<{path};type=text/x"),
            format!("d=@{path};filename=other;type=image/png"),
        ];
        let body = multipart(&forms.map(Into::into), "B").unwrap();
        let expected = "--B\r\nContent-Disposition: form-data; name=\"a\"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n1\r\n\
            --B\r\nContent-Disposition: form-data; name=\"b\"; filename=\"a%22b.txt\"\r\n\
            Content-Type: application/octet-stream\r\n\r\ncontent\r\n\
            --B\r\nContent-Disposition: form-data; name=\"c\"\r\nContent-Type: text/x\r\n\r\ncontent\r\n\
            --B\r\nContent-Disposition: form-data; name=\"d\"; filename=\"other\"\r\nContent-Type: image/png\r\n\r\ncontent\r\n\
            --B--\r\n";
        assert_eq!(text(&body), expected);
        assert_eq!(body.len(), expected.len() as u64);
        assert!(multipart(&["a".into()], "B").is_err() && multipart(&["a=@/no/such/file".into()], "B").is_err());
    }

    #[test]
    fn a_file_that_shrinks_is_an_error_and_no_short_body() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "1234").unwrap();
        let body = Body::of_file(file.path()).unwrap();
        std::fs::write(file.path(), "12").unwrap();
        let mut reader = body.reader();
        assert_eq!(reader.next().unwrap().unwrap(), "12");
        assert!(reader.next().unwrap_err().to_string().contains("2 bytes shorter"));
    }
}
