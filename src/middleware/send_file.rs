//! Files that an application names instead of sending them: X-Sendfile and X-Accel-Redirect, served from folders that were named before.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use percent_encoding::percent_decode;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::application::conditional::{self, Outcome, Validators};
use crate::application::driver::{Response, call};
use crate::application::{
    Application, Body, DEFAULT_BLOCK_SIZE, Environ, Error, FileRange, Head, Headers, StartResponse, Status,
};

/// The folders whose files applications may name. Which of the two headers is served is which of the two has folders; the other
/// passes on to the web server in front.
#[derive(Debug, Clone, Default)]
pub struct SendFileRoots {
    /// For X-Sendfile (and lighttpd's X-LIGHTTPD-send-file), which has an absolute path: the folders that it may be in. Default: none.
    pub files: Vec<PathBuf>,
    /// For X-Accel-Redirect, which has an encoded path of the site: such as `/protected/` with the folder that has what is below it, as an internal
    /// location of nginx with an alias. The longest prefix counts. Default: none.
    pub accel: Vec<(String, PathBuf)>,
}

/// Answers with the file that an application names with X-Sendfile or X-Accel-Redirect, and never shows the name to the client.
///
/// A path is followed within its folder only (`openat2` with RESOLVE_BENEATH): neither `..` nor a link leads out of it, and only
/// regular files are sent. The body that the application gave is closed unread. Its other fields stay, Content-Type, Content-Disposition,
/// Last-Modified and ETag among them; Content-Length is the file's, and Last-Modified and ETag are made where they are missing. An
/// answer of 200 to GET or HEAD has conditions (RFC 9110 13) and to GET a range (one, RFC 9110 14); of any
/// other status the file is the body as it is. A file that can't be sent is 404, and the log says why.
///
/// ```no_run
/// # use gatespan::{application::{Body, Environ, Error, StartResponse}, middleware::{SendFileRoots, send_file}};
/// # async fn shop(_: Environ, _: StartResponse) -> Result<Body, Error> { Ok(Body::empty()) }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let roots = SendFileRoots { files: vec!["/srv/downloads".into()], ..SendFileRoots::default() };
/// let site = send_file(shop, &roots)?;
/// # Ok(()) }
/// ```
///
/// # Errors
///
/// When one of the folders can't be opened.
pub fn send_file<A: Application>(application: A, roots: &SendFileRoots) -> Result<SendFile<A>, SendFileError> {
    let mut folders = Folders::default();
    for path in &roots.files {
        folders.files.push(Folder::open(path)?);
    }
    for (prefix, path) in &roots.accel {
        folders.accel.push((prefix.clone().into_bytes(), Folder::open(path)?));
    }
    folders.accel.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
    Ok(SendFile { application: Arc::new(application), folders: Arc::new(folders) })
}

/// See [`send_file`].
pub struct SendFile<A> {
    application: Arc<A>,
    folders: Arc<Folders>,
}

/// Why a folder is not served, or a file not sent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendFileError {
    /// A folder that can't be opened.
    #[error("{}: expected a folder whose files may be sent", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A path in none of the folders.
    #[error("expected {header} to name a file {expected}, got \"{named}\"")]
    Elsewhere {
        /// The header.
        header: &'static str,
        /// Where files may be.
        expected: &'static str,
        /// What the application named.
        named: String,
    },
    /// A path that leads out of its folder, by `..` or a link.
    #[error("{header} names \"{named}\", which leads out of its folder")]
    Outside {
        /// The header.
        header: &'static str,
        /// What the application named.
        named: String,
    },
    /// A folder, a device, a socket or a pipe.
    #[error("{header} names \"{named}\", which is no regular file")]
    NotRegular {
        /// The header.
        header: &'static str,
        /// What the application named.
        named: String,
    },
    /// A file that is missing or may not be read.
    #[error("{header} names \"{named}\", which can't be opened")]
    Open {
        /// The header.
        header: &'static str,
        /// What the application named.
        named: String,
        /// Why.
        source: io::Error,
    },
}

const SENDFILE: &str = "X-Sendfile";
const SENDFILE_LIGHTTPD: &str = "X-LIGHTTPD-send-file";
const ACCEL: &str = "X-Accel-Redirect";

impl<A: Application> Application for SendFile<A> {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let request = environ.without_input();
        let response = call(self.application.clone(), environ).await?;
        let Some((header, named)) = self.folders.named(&response.head.headers) else {
            return response.pass_on(&start_response);
        };
        let Response { mut head, mut body } = response;
        body.close().await;
        let folders = self.folders.clone();
        // Where a folder is on a slow disk, opening takes as long as it takes.
        let opened = tokio::task::spawn_blocking(move || folders.open(header, &named)).await?;
        let (file, metadata) = opened.map_err(|error| Error::new(error).with_status(404))?;
        for name in [SENDFILE, SENDFILE_LIGHTTPD, ACCEL, "Content-Length"] {
            head.headers.remove(name);
        }
        let range = select(&request, &mut head, &metadata)?;
        head.headers.push("Content-Length", range.as_ref().map_or(0, |range| range.len).to_string());
        if head.status.code() == 304 {
            head.headers.remove("Content-Length");
        }
        start_response.start(head.status, head.headers)?;
        Ok(range.map_or(Body::empty(), |Part { offset, len }| {
            FileRange { file: Arc::new(file), offset, len, block_size: DEFAULT_BLOCK_SIZE }.into()
        }))
    }
}

#[derive(Default)]
struct Folders {
    files: Vec<Folder>,
    /// The longest prefix first.
    accel: Vec<(Vec<u8>, Folder)>,
}

struct Folder {
    /// As it was named, made absolute, and where it really is: applications know it by either.
    paths: [PathBuf; 2],
    descriptor: OwnedFd,
}

impl Folder {
    fn open(path: &Path) -> Result<Self, SendFileError> {
        let failed = |source| SendFileError::Folder { path: path.into(), source };
        let paths = [std::path::absolute(path).map_err(failed)?, path.canonicalize().map_err(failed)?];
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let descriptor = rustix::fs::open(path, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
        Ok(Self { paths, descriptor })
    }
}

impl Folders {
    /// The header that is served here, with its value.
    fn named(&self, headers: &Headers) -> Option<(&'static str, Vec<u8>)> {
        let files: &[_] = if self.files.is_empty() { &[] } else { &[SENDFILE, SENDFILE_LIGHTTPD] };
        let accel: &[_] = if self.accel.is_empty() { &[] } else { &[ACCEL] };
        let mut names = files.iter().chain(accel);
        names.find_map(|name| headers.get(name).map(|value| (*name, value.to_vec())))
    }

    fn open(&self, header: &'static str, named: &[u8]) -> Result<(File, Metadata), SendFileError> {
        let text = || named.escape_ascii().to_string();
        let (folder, rest) = match header {
            ACCEL => self.find_accel(named).ok_or_else(|| SendFileError::Elsewhere {
                header,
                expected: "below one of the prefixes",
                named: text(),
            })?,
            _ => self.find_file(named).ok_or_else(|| SendFileError::Elsewhere {
                header,
                expected: "by its absolute path in one of the folders",
                named: text(),
            })?,
        };
        let failed = |source| SendFileError::Open { header, named: text(), source };
        let file = match open_beneath(folder, &rest) {
            Ok(file) => File::from(file),
            Err(Errno::XDEV) => return Err(SendFileError::Outside { header, named: text() }),
            // A socket.
            Err(Errno::NXIO) => return Err(SendFileError::NotRegular { header, named: text() }),
            Err(error) => return Err(failed(error.into())),
        };
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(SendFileError::NotRegular { header, named: text() });
        }
        Ok((file, metadata))
    }

    fn find_file(&self, named: &[u8]) -> Option<(&Folder, OsString)> {
        let path = Path::new(OsStr::from_bytes(named));
        self.files.iter().find_map(|folder| {
            let rest = folder.paths.iter().find_map(|root| path.strip_prefix(root).ok())?;
            Some((folder, rest.as_os_str().to_owned()))
        })
    }

    fn find_accel(&self, named: &[u8]) -> Option<(&Folder, OsString)> {
        // As nginx reads it: encoded, with a query that means nothing for files.
        let path = named.split(|byte| *byte == b'?').next().unwrap_or_default();
        let path: Vec<u8> = percent_decode(path).collect();
        self.accel.iter().find_map(|(prefix, folder)| {
            let rest = path.strip_prefix(&**prefix)?;
            // A prefix ends where a part of the path does.
            if !rest.is_empty() && !rest.starts_with(b"/") && !prefix.ends_with(b"/") {
                return None;
            }
            let start = rest.iter().position(|byte| *byte != b'/').unwrap_or(rest.len());
            Some((folder, OsString::from_vec(rest[start..].to_vec())))
        })
    }
}

/// Opens a file in a folder, wherever its path and the links on it lead, as long as that is in the folder.
fn open_beneath(folder: &Folder, path: &OsStr) -> rustix::io::Result<OwnedFd> {
    // Linux gives EAGAIN where a folder on the way was renamed at that moment.
    const ATTEMPTS: usize = 16;
    // A pipe without a writer would be waited for.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 1..ATTEMPTS {
        match rustix::fs::openat2(&folder.descriptor, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            opened => return opened,
        }
    }
    rustix::fs::openat2(&folder.descriptor, path, flags, Mode::empty(), resolve)
}

/// Which part of a file is sent.
#[derive(Debug, PartialEq, Eq)]
struct Part {
    offset: u64,
    len: u64,
}

/// Completes the head, and finds which part of the file it is the head of; `None` for none of it.
fn select(request: &Environ, head: &mut Head, metadata: &Metadata) -> Result<Option<Part>, Error> {
    let file_len = metadata.len();
    let whole = Some(Part { offset: 0, len: file_len });
    if head.status.code() != 200 || !matches!(request.method(), b"GET" | b"HEAD") {
        return Ok(whole);
    }
    let (headers, own) = (&mut head.headers, Validators::of(metadata, None));
    if let Some(etag) = own.etag.as_ref().filter(|_| !headers.contains("ETag")) {
        headers.push("ETag", etag);
    }
    if let Some(modified) = own.last_modified().filter(|_| !headers.contains("Last-Modified")) {
        headers.push("Last-Modified", modified);
    }
    if !headers.contains("Accept-Ranges") {
        headers.push("Accept-Ranges", "bytes");
    }
    // What the application says of its file counts.
    let validators = Validators::of_fields(headers.get("ETag"), headers.get("Last-Modified"));
    let (status, part) = match conditional::outcome(request, &validators, file_len) {
        Outcome::Whole => return Ok(whole),
        Outcome::NotModified => (304, None),
        Outcome::Part { offset, len } => {
            headers.set("Content-Range", format!("bytes {offset}-{}/{file_len}", offset + len - 1));
            (206, Some(Part { offset, len }))
        }
        refused => {
            // Of what the file is there is nothing here.
            for name in ["Content-Disposition", "Content-Encoding", "Content-Type"] {
                headers.remove(name);
            }
            match refused {
                // RFC 9110 15.5.17.
                Outcome::NotSatisfiable => {
                    headers.set("Content-Range", format!("bytes */{file_len}"));
                    (416, None)
                }
                _ => (412, None),
            }
        }
    };
    head.status = Status::new(status)?;
    Ok(part)
}

impl<A> fmt::Debug for SendFile<A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.folders.files.iter().map(|folder| &folder.paths[0]).collect::<Vec<_>>();
        f.debug_struct("SendFile").field("files", &files).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::super::forms::{counted_request, forms, request};
    use super::*;

    /// A folder with `root/file` (ten bytes), `root/sub/two`, and `outside` beside the root.
    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("root/sub")).unwrap();
        fs::write(folder.path().join("root/file"), "0123456789").unwrap();
        fs::write(folder.path().join("root/sub/two"), "two").unwrap();
        fs::write(folder.path().join("outside"), "secret").unwrap();
        folder
    }

    fn roots(folder: &tempfile::TempDir) -> SendFileRoots {
        let root = folder.path().join("root");
        SendFileRoots { files: vec![root.clone()], accel: vec![("/protected/".into(), root)] }
    }

    /// An application that answers with these headers, and a body that nobody is to see.
    fn naming(status: &'static str, headers: Vec<(&'static str, String)>) -> (impl Application, Arc<AtomicUsize>) {
        let closed = Arc::new(AtomicUsize::new(0));
        let counts = closed.clone();
        let app = move |_: Environ, start_response: StartResponse| {
            let (headers, counts) = (headers.iter().cloned().collect::<Headers>(), counts.clone());
            async move {
                start_response.start(status, headers)?;
                Ok(Body::from("not this").on_close(move || {
                    counts.fetch_add(1, Ordering::SeqCst);
                }))
            }
        };
        (app, closed)
    }

    struct Answer {
        status: u16,
        headers: Headers,
        body: String,
    }

    async fn answer(app: impl Application, roots: &SendFileRoots, environ: Environ) -> Result<Answer, Error> {
        let mut response = call(send_file(app, roots).unwrap(), environ).await?;
        let body = response.body.read_to_end(99).await?;
        let Head { status, headers } = response.head;
        Ok(Answer { status: status.code(), headers, body: String::from_utf8(body.into()).unwrap() })
    }

    async fn named(roots: &SendFileRoots, header: &'static str, value: &str) -> Result<Answer, Error> {
        answer(naming("200 OK", vec![(header, value.into())]).0, roots, request("/")).await
    }

    #[tokio::test]
    async fn a_file_takes_the_place_of_the_body_and_the_head_stays() {
        let folder = folder();
        let path = folder.path().join("root/file").display().to_string();
        let headers = vec![
            ("Content-Type", "text/csv".into()),
            ("Content-Disposition", "attachment".into()),
            ("Content-Length", "8".into()),
            ("x-sendfile", path),
            ("ETag", "\"mine\"".into()),
        ];
        let (app, closed) = naming("200 OK", headers);
        let answer = answer(app, &roots(&folder), request("/")).await.unwrap();
        assert_eq!((answer.status, &*answer.body), (200, "0123456789"));
        assert_eq!(closed.load(Ordering::SeqCst), 1);
        let value = |name| answer.headers.all(name).map(|value| String::from_utf8_lossy(value)).collect::<Vec<_>>();
        assert_eq!(value("Content-Type"), ["text/csv"]);
        assert_eq!(value("Content-Disposition"), ["attachment"]);
        assert_eq!(value("Content-Length"), ["10"]);
        assert_eq!(value("ETag"), ["\"mine\""]);
        assert!(value("Last-Modified")[0].ends_with(" GMT"));
        assert!(value("X-Sendfile").is_empty());
    }

    #[tokio::test]
    async fn accel_redirect_is_an_encoded_path_below_a_prefix() {
        let folder = folder();
        let mut roots = roots(&folder);
        roots.accel.push(("/protected/deep".into(), folder.path().join("root/sub")));
        for (value, expected) in [
            ("/protected/file", Some("0123456789")),
            ("/protected/%66ile?a=b", Some("0123456789")),
            ("/protected//file", Some("0123456789")),
            ("/protected/deep/two", Some("two")),
            ("/protected/deeper", None),
            ("/protected", None),
            ("/protected/", None),
            ("/other/file", None),
            ("protected/file", None),
            ("/protected/fi%00le", None),
        ] {
            match (named(&roots, ACCEL, value).await, expected) {
                (Ok(answer), Some(expected)) => assert_eq!(answer.body, expected, "{value}"),
                (Err(error), None) => assert_eq!(error.status(), 404, "{value}"),
                (other, _) => panic!("{value}: {:?}", other.map(|answer| answer.body)),
            }
        }
    }

    #[tokio::test]
    async fn nothing_leads_out_of_a_folder_and_only_regular_files_are_sent() {
        let folder = folder();
        let root = folder.path().join("root");
        symlink(folder.path().join("outside"), root.join("link")).unwrap();
        symlink("../outside", root.join("relative")).unwrap();
        symlink("sub/two", root.join("inside")).unwrap();
        symlink("/", root.join("top")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            root.join("pipe"),
            rustix::fs::FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap();
        let roots = roots(&folder);
        assert_eq!(named(&roots, SENDFILE, &root.join("inside").display().to_string()).await.unwrap().body, "two");
        for (name, kind) in [
            ("../outside", "leads out"),
            ("sub/../../outside", "leads out"),
            ("link", "leads out"),
            ("relative", "leads out"),
            ("top/etc/passwd", "leads out"),
            ("pipe", "no regular file"),
            ("socket", "no regular file"),
            ("sub", "no regular file"),
            ("", "can't be opened"),
            ("missing", "can't be opened: No such file"),
            ("file/below", "can't be opened"),
        ] {
            let path = format!("{}/{name}", root.display());
            let error = named(&roots, SENDFILE, &path).await.map(|answer| answer.body).expect_err(name);
            assert_eq!(error.status(), 404, "{name}");
            assert!(error.to_string().contains(kind), "{name}: {error}");
        }
        for elsewhere in ["/etc/passwd", "file", "", &format!("{}x/file", root.display())] {
            let error = named(&roots, SENDFILE, elsewhere).await.map(|answer| answer.body).expect_err(elsewhere);
            assert!(error.to_string().contains("in one of the folders"), "{elsewhere}: {error}");
        }
        assert!(named(&roots, ACCEL, "/protected/..%2foutside").await.is_err());
    }

    #[tokio::test]
    async fn a_folder_is_known_by_its_link_too() {
        let folder = folder();
        symlink("root", folder.path().join("alias")).unwrap();
        let roots = SendFileRoots { files: vec![folder.path().join("alias")], ..SendFileRoots::default() };
        for name in ["alias/file", "root/file"] {
            let path = folder.path().canonicalize().unwrap().join(name).display().to_string();
            assert_eq!(named(&roots, SENDFILE_LIGHTTPD, &path).await.unwrap().body, "0123456789");
        }
    }

    #[tokio::test]
    async fn without_a_folder_the_header_passes_on_and_so_does_every_form() {
        let folder = folder();
        let files = SendFileRoots { accel: Vec::new(), ..roots(&folder) };
        let answer = named(&files, ACCEL, "/protected/file").await.unwrap();
        assert_eq!((&*answer.body, answer.headers.get(ACCEL)), ("not this", Some(&b"/protected/file"[..])));
        for (form, app) in forms() {
            let (environ, closed) = counted_request("/a");
            assert_eq!(super::tests::answer(app, &files, environ).await.unwrap().body, "|/a", "{form}");
            assert_eq!(closed.count(), 1, "{form}");
        }
        let missing = SendFileRoots { files: vec![folder.path().join("none")], ..SendFileRoots::default() };
        assert!(send_file(naming("200 OK", vec![]).0, &missing).unwrap_err().to_string().contains("none"));
    }

    async fn asked(method: &str, status: &'static str, fields: &[(&str, &str)]) -> Answer {
        let folder = folder();
        let mut environ = request("/");
        environ.set("REQUEST_METHOD", method).unwrap();
        for (name, value) in fields {
            environ.set(name, value).unwrap();
        }
        let headers = vec![
            (ACCEL, "/protected/file".into()),
            ("ETag", "\"v1\"".into()),
            ("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT".into()),
            ("Content-Type", "text/csv".into()),
        ];
        answer(naming(status, headers).0, &roots(&folder), environ).await.unwrap()
    }

    #[tokio::test]
    async fn a_range_is_206_and_one_past_the_end_416() {
        for (range, status, content_range, body) in [
            ("bytes=0-0", 206, "bytes 0-0/10", "0"),
            ("Bytes=2-4", 206, "bytes 2-4/10", "234"),
            ("bytes=7-", 206, "bytes 7-9/10", "789"),
            ("bytes=-2", 206, "bytes 8-9/10", "89"),
            ("bytes=-99", 206, "bytes 0-9/10", "0123456789"),
            ("bytes=9-99999999999999999999999", 206, "bytes 9-9/10", "9"),
            ("bytes=10-", 416, "bytes */10", ""),
            ("bytes=-0", 416, "bytes */10", ""),
            ("bytes=4-2", 200, "", "0123456789"),
            ("bytes=0-1,3-4", 200, "", "0123456789"),
            ("bytes=", 200, "", "0123456789"),
            ("bytes=-", 200, "", "0123456789"),
            ("bytes=+1-2", 200, "", "0123456789"),
            ("lines=0-1", 200, "", "0123456789"),
        ] {
            let answer = asked("GET", "200 OK", &[("HTTP_RANGE", range)]).await;
            assert_eq!((answer.status, &*answer.body), (status, body), "{range}");
            assert_eq!(answer.headers.get("Content-Range").unwrap_or_default(), content_range.as_bytes(), "{range}");
            assert_eq!(answer.headers.get("Content-Length").unwrap(), body.len().to_string().as_bytes(), "{range}");
        }
        // RFC 9110 14.2: a range is for GET alone.
        let head = asked("HEAD", "200 OK", &[("HTTP_RANGE", "bytes=2-4")]).await;
        assert_eq!((head.status, &*head.body, head.headers.get("Content-Length")), (200, "", Some(&b"10"[..])));
    }

    #[tokio::test]
    async fn conditions_are_met_by_tag_before_date() {
        const SAME: (&str, &str) = ("HTTP_IF_MODIFIED_SINCE", "Sun, 06 Nov 1994 08:49:37 GMT");
        const BEFORE: (&str, &str) = ("HTTP_IF_MODIFIED_SINCE", "Sun, 06 Nov 1994 08:49:36 GMT");
        for (fields, status) in [
            (&[SAME][..], 304),
            (&[BEFORE], 200),
            (&[("HTTP_IF_MODIFIED_SINCE", "yesterday")], 200),
            (&[("HTTP_IF_NONE_MATCH", "\"v1\"")], 304),
            (&[("HTTP_IF_NONE_MATCH", "\"a,b\", W/\"v1\"")], 304),
            (&[("HTTP_IF_NONE_MATCH", "*")], 304),
            (&[("HTTP_IF_NONE_MATCH", "\"v2\""), SAME], 200),
            (&[("HTTP_IF_NONE_MATCH", "v1")], 200),
            (&[("HTTP_IF_MATCH", "\"v1\"")], 200),
            (&[("HTTP_IF_MATCH", "\"v2\"")], 412),
            (&[("HTTP_IF_UNMODIFIED_SINCE", BEFORE.1)], 412),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", "\"v1\"")], 206),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", "\"v2\"")], 200),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", "W/\"v1\"")], 200),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", SAME.1)], 206),
            (&[("HTTP_RANGE", "bytes=0-0"), ("HTTP_IF_RANGE", BEFORE.1)], 200),
        ] {
            let answer = asked("GET", "200 OK", fields).await;
            assert_eq!(answer.status, status, "{fields:?}");
            if status == 304 {
                assert_eq!((&*answer.body, answer.headers.get("Content-Length")), ("", None));
                assert_eq!(answer.headers.get("ETag"), Some(&b"\"v1\""[..]));
            }
            // Neither another method nor another status has conditions or ranges.
            for answer in [asked("POST", "200 OK", fields).await, asked("GET", "404 Not Found", fields).await] {
                assert!(matches!(answer.status, 200 | 404), "{fields:?}");
                assert_eq!(answer.body, "0123456789");
            }
        }
    }
}
