//! A folder of files as an application.
//!
//! Files go out as parts of files, which a gateway may send without reading them, and those that are small and in memory as bytes at once.
//! Types come from the ending of the name and never from the content. Conditional requests (RFC 9110 section 13) and a single range (section
//! 14) are answered; of several ranges none is, as section 14.2 allows, so that nobody can ask for a file a thousand times in one request.
//!
//! What is not given out: names that begin with a dot, save `.well-known`; what a link leads to outside the folder ([`Links`]); anything but
//! regular files and, by option, lists of folders. `.`, `..` and NUL never reach the file system.
//!
//! The path is PATH_INFO, below SCRIPT_NAME; where there is no such variable, SCRIPT_NAME.

mod listing;
mod precompressed;
mod types;

use std::fs::{File, Metadata};
use std::io::IoSliceMut;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::{ReadWriteFlags, preadv2};

pub use super::root::{Links, LookupError, RootError};
pub use precompressed::Coding;

use super::root::{DEFAULT_MAX_PATH, Found, Relative, Root, path_of};
use crate::application::conditional::{self, Outcome, Validators};
use crate::application::{
    Application, Body, DEFAULT_BLOCK_SIZE, Environ, Error, FileRange, Headers, StartResponse, encode_path,
};

/// What is served of a folder, and how.
#[derive(Debug, Clone)]
pub struct Config {
    /// The names that are looked for in a folder, in this order. Default: `index.html`.
    pub index: Vec<String>,
    /// Whether a folder without an index is answered with a list of what is in it. Default: false; it is 404 then.
    pub listing: bool,
    /// The most names on such a list; it says so where there are more. Default: 10,000.
    pub listing_limit: usize,
    /// The codings of which a file may have a copy beside it, such as `page.html.br`, given to clients that take it; of those that a client
    /// likes alike the first counts. Default: none.
    pub precompressed: Vec<Coding>,
    /// What is done about links. Default: followed within the folder.
    pub links: Links,
    /// Types by the ending of a name, without its dot and in lower case, before those that are known. Default: none.
    pub types: Vec<(String, String)>,
    /// The type of a file whose ending is not known. Default: `application/octet-stream`, which a browser saves and does not run.
    pub default_type: String,
    /// Cache-Control of files. Default: none.
    pub cache_control: Option<String>,
    /// The longest path, decoded, in bytes. Over it is 414. Default: 4,096.
    pub max_path: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            index: vec!["index.html".into()],
            listing: false,
            listing_limit: 10_000,
            precompressed: Vec::new(),
            links: Links::default(),
            types: Vec::new(),
            default_type: "application/octet-stream".into(),
            cache_control: None,
            max_path: DEFAULT_MAX_PATH,
        }
    }
}

/// A folder as an application. Cheap to clone.
///
/// ```no_run
/// use gatespan::upstream::files::{Config, Files};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let site = Files::new("/srv/www", Config { listing: true, ..Config::default() })?;
/// # Ok(()) }
/// ```
#[derive(Debug, Clone)]
pub struct Files {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    root: Root,
    config: Config,
}

impl Files {
    /// The files in that folder.
    ///
    /// # Errors
    ///
    /// When it is no folder, or can't be opened.
    pub fn new(root: impl Into<PathBuf>, config: Config) -> Result<Self, RootError> {
        let root = Root::new(&root.into(), config.links)?;
        Ok(Self { shared: Arc::new(Shared { root, config }) })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        self.shared.root.path()
    }
}

impl Application for Files {
    async fn call(&self, environ: Environ, start_response: StartResponse) -> Result<Body, Error> {
        let Answer { status, mut headers, mut body } = self.shared.answer(&environ).await?;
        if environ.method() == b"HEAD" {
            // A body that is left out is announced all the same (RFC 9110 9.3.2).
            if let Some(len) = body.exact_len().filter(|_| status != 304 && !headers.contains("Content-Length")) {
                headers.push("Content-Length", len.to_string());
            }
            body = Body::empty();
        }
        start_response.start(status, headers)?;
        Ok(body)
    }
}

/// What becomes of a request.
struct Answer {
    status: u16,
    headers: Headers,
    body: Body,
}

impl Answer {
    fn page(status: u16, headers: impl Into<Headers>, text: impl Into<Body>) -> Self {
        let mut headers = headers.into();
        headers.push("Content-Type", "text/plain; charset=utf-8");
        Self { status, headers, body: text.into() }
    }

    fn not_found() -> Self {
        Self::page(404, (), "404 Not Found\n")
    }
}

impl Shared {
    async fn answer(&self, environ: &Environ) -> Result<Answer, Error> {
        if !matches!(environ.method(), b"GET" | b"HEAD") {
            return Ok(Answer::page(405, [("Allow", "GET, HEAD")], "405 Method Not Allowed\n"));
        }
        let found = match self.find(environ).await {
            Ok(found) => found,
            // What is missing is no failure that anybody's log should fill with.
            Err(LookupError::Missing | LookupError::Hidden(_)) => return Ok(Answer::not_found()),
            Err(error) => return Err(error.into_error()),
        };
        match found {
            Target::File(path, file, metadata) => self.file(environ, &path, file, metadata).await,
            Target::Redirect(path) => {
                let mut location: String = encode_path(&path);
                // Two slashes would begin the name of another host (RFC 3986 4.2).
                location.replace_range(..location.len() - location.trim_start_matches('/').len(), "/");
                if !environ.query_string().is_empty() {
                    location.push('?');
                    location.push_str(&String::from_utf8_lossy(environ.query_string()));
                }
                Ok(Answer::page(301, [("Location", location)], "301 Moved Permanently\n"))
            }
            Target::Listing(path, folder) => {
                let page = listing::page(folder, path, self.config.listing_limit).await?;
                let headers = [
                    ("Content-Type", "text/html; charset=utf-8"),
                    // Whatever a name may look like, it is nothing to run.
                    ("Content-Security-Policy", "default-src 'none'"),
                    ("X-Content-Type-Options", "nosniff"),
                ];
                Ok(Answer { status: 200, headers: headers.into(), body: page.into() })
            }
        }
    }

    async fn find(&self, environ: &Environ) -> Result<Target, LookupError> {
        let (mounted_at, path) = path_of(environ);
        let relative = Relative::new(path, self.config.max_path)?;
        let folder = match self.root.find(&relative).await? {
            // A file has nothing below it.
            Found::File(..) if relative.is_folder() => return Err(LookupError::Missing),
            Found::File(file, metadata) => return Ok(Target::File(relative, file, metadata)),
            Found::Folder(folder) => folder,
        };
        if !path.ends_with(b"/") {
            // Links in its page count from where its path ends.
            let mut with_slash = mounted_at.to_vec();
            with_slash.extend_from_slice(&relative.absolute());
            if !with_slash.ends_with(b"/") {
                with_slash.push(b'/');
            }
            return Ok(Target::Redirect(with_slash));
        }
        for name in &self.config.index {
            let index = relative.join(name.as_bytes());
            match self.root.find(&index).await {
                Ok(Found::File(file, metadata)) => return Ok(Target::File(index, file, metadata)),
                Ok(Found::Folder(_)) | Err(LookupError::Missing) => {}
                Err(error) => return Err(error),
            }
        }
        match self.config.listing {
            true => Ok(Target::Listing([mounted_at, &*relative.absolute()].concat(), folder)),
            false => Err(LookupError::Missing),
        }
    }

    async fn file(&self, environ: &Environ, path: &Relative, file: File, metadata: Metadata) -> Result<Answer, Error> {
        let mut headers = Headers::new();
        headers.push("Content-Type", types::of(path.bytes(), &self.config));
        let (mut file, mut metadata, mut coding) = (file, metadata, None);
        if !self.config.precompressed.is_empty() {
            headers.push("Vary", "Accept-Encoding");
            for accepted in precompressed::accepted(environ.get("HTTP_ACCEPT_ENCODING"), &self.config.precompressed) {
                if let Ok(Found::File(found, found_metadata)) =
                    self.root.find(&path.with_ending(accepted.ending())).await
                {
                    (file, metadata, coding) = (found, found_metadata, Some(accepted));
                    headers.push("Content-Encoding", accepted.name());
                    break;
                }
            }
        }
        let validators = Validators::of(&metadata, coding.map(Coding::name));
        let len = metadata.len();
        if let Some(etag) = &validators.etag {
            headers.push("ETag", etag);
        }
        if let Some(modified) = validators.last_modified() {
            headers.push("Last-Modified", modified);
        }
        if let Some(cache_control) = &self.config.cache_control {
            headers.push("Cache-Control", cache_control);
        }
        headers.push("Accept-Ranges", "bytes");
        let (status, offset, len) = match conditional::outcome(environ, &validators, len) {
            Outcome::Whole => (200, 0, len),
            Outcome::Part { offset, len: part } => {
                headers.push("Content-Range", format!("bytes {offset}-{}/{len}", offset + part - 1));
                (206, offset, part)
            }
            Outcome::NotModified => {
                headers.remove("Content-Type");
                return Ok(Answer { status: 304, headers, body: Body::empty() });
            }
            Outcome::PreconditionFailed => return Ok(Answer::page(412, (), "412 Precondition Failed\n")),
            Outcome::NotSatisfiable => {
                let range = format!("bytes */{len}");
                return Ok(Answer::page(416, [("Content-Range", range)], "416 Range Not Satisfiable\n"));
            }
        };
        headers.push("Content-Length", len.to_string());
        // A HEAD's bytes would be read for nobody.
        let body = if environ.method() == b"HEAD" { Body::empty() } else { body(file, offset, len) };
        Ok(Answer { status, headers, body })
    }
}

enum Target {
    File(Relative, File, Metadata),
    /// A folder that was asked for without the slash at its end; the path with it.
    Redirect(Vec<u8>),
    Listing(Vec<u8>, rustix::fd::OwnedFd),
}

/// A part of a file: its bytes if they are few and need not be waited for, else as what it is.
fn body(file: File, offset: u64, len: u64) -> Body {
    match usize::try_from(len) {
        Ok(0) => Body::empty(),
        Ok(small) if small <= DEFAULT_BLOCK_SIZE => {
            let mut bytes = vec![0; small];
            let read = preadv2(&file, &mut [IoSliceMut::new(&mut bytes)], offset, ReadWriteFlags::NOWAIT);
            match read {
                Ok(read) if read == small => Body::from(bytes),
                _ => FileRange { file: Arc::new(file), offset, len, block_size: DEFAULT_BLOCK_SIZE }.into(),
            }
        }
        _ => FileRange { file: Arc::new(file), offset, len, block_size: DEFAULT_BLOCK_SIZE }.into(),
    }
}
