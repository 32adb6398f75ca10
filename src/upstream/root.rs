//! A folder that requests may look into, and nothing outside it: shared by the upstreams that map paths to files.

use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

use crate::application::{Environ, Error};
use crate::protocol::cgi::names;

/// The longest path that is looked up, in bytes, unless told otherwise: 4,096, Linux's own PATH_MAX.
pub(super) const DEFAULT_MAX_PATH: usize = 4096;

/// What is done about symbolic links.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Links {
    /// Followed as long as what they lead to in the end lies within the folder, however they are written. Else it is 404.
    #[default]
    Within,
    /// Followed wherever they lead, as most web servers do.
    Anywhere,
}

/// Why a path leads to nothing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LookupError {
    /// A path with NUL, in which a file's name would end.
    #[error("the path holds NUL")]
    Nul,
    /// Over the limit.
    #[error("the path has {len} bytes, the limit is {limit}")]
    TooLong {
        /// Its length, decoded.
        len: usize,
        /// The limit.
        limit: usize,
    },
    /// `.`, `..` or a name that begins with a dot.
    #[error("the path has a segment that begins with a dot: \"{0}\"")]
    Hidden(String),
    /// There is nothing of that name, or something that is neither a file nor a folder.
    #[error("there is no such file")]
    Missing,
    /// It is there, and this process may not read it.
    #[error("the file can't be read")]
    Denied(#[source] io::Error),
    /// A link leads out of the folder.
    #[error("a link leads out of {0}")]
    Outside(String),
    /// Anything else that the system says.
    #[error("the file can't be opened")]
    Io(#[source] io::Error),
}

impl LookupError {
    /// What a client is answered. It can't tell what is hidden from what is missing.
    pub fn status(&self) -> u16 {
        match self {
            Self::Nul => 400,
            Self::TooLong { .. } => 414,
            Self::Hidden(_) | Self::Missing | Self::Outside(_) => 404,
            Self::Denied(_) => 403,
            Self::Io(_) => 500,
        }
    }

    pub(super) fn into_error(self) -> Error {
        let status = self.status();
        Error::new(self).with_status(status)
    }
}

/// What a request's path is, and what stands before it: the place at which the application is mounted. A web server that gives no
/// PATH_INFO at all, as nginx's stock parameters do, means all of SCRIPT_NAME.
pub(super) fn path_of(environ: &Environ) -> (&[u8], &[u8]) {
    match environ.get(names::PATH_INFO) {
        Some(path) => (environ.script_name(), path),
        None => (b"", environ.script_name()),
    }
}

/// A decoded path below a folder: its segments with one slash between them and none at either end, none of which begins with a dot. Not one
/// of them is `.`, `..` or empty, so that a path is written in one way only when it is compared with patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Relative {
    bytes: Vec<u8>,
    /// It ended with a slash, or is the folder itself.
    is_folder: bool,
}

impl Relative {
    /// That path, decoded once and never again: a `%` in it is part of a name.
    pub(super) fn new(path: &[u8], limit: usize) -> Result<Self, LookupError> {
        Self::of(path, limit, |segment| segment.starts_with(b".") && segment != b".well-known")
    }

    /// The same where names may begin with a dot, `.` and `..` alone still being nothing.
    pub(super) fn with_hidden(path: &[u8], limit: usize) -> Result<Self, LookupError> {
        Self::of(path, limit, |segment| segment == b"." || segment == b"..")
    }

    fn of(path: &[u8], limit: usize, is_hidden: impl Fn(&[u8]) -> bool) -> Result<Self, LookupError> {
        if path.len() > limit {
            return Err(LookupError::TooLong { len: path.len(), limit });
        }
        if memchr::memchr(0, path).is_some() {
            return Err(LookupError::Nul);
        }
        let mut bytes = Vec::with_capacity(path.len());
        for segment in path.split(|byte| *byte == b'/').filter(|segment| !segment.is_empty()) {
            if is_hidden(segment) {
                return Err(LookupError::Hidden(segment[..segment.len().min(64)].escape_ascii().to_string()));
            }
            if !bytes.is_empty() {
                bytes.push(b'/');
            }
            bytes.extend_from_slice(segment);
        }
        let is_folder = bytes.is_empty() || path.ends_with(b"/");
        Ok(Self { bytes, is_folder })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn is_folder(&self) -> bool {
        self.is_folder
    }

    /// The path of a file in this folder.
    pub(super) fn join(&self, name: &[u8]) -> Self {
        let mut bytes = self.bytes.clone();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self { bytes, is_folder: false }
    }

    /// The path of the file beside it whose name has this ending, too.
    pub(super) fn with_ending(&self, ending: &str) -> Self {
        let mut bytes = self.bytes.clone();
        bytes.extend_from_slice(ending.as_bytes());
        Self { bytes, is_folder: false }
    }

    /// With a slash before it, and one behind a folder's.
    pub(super) fn absolute(&self) -> Vec<u8> {
        let mut path = Vec::with_capacity(self.bytes.len() + 2);
        path.push(b'/');
        path.extend_from_slice(&self.bytes);
        if self.is_folder && !self.bytes.is_empty() {
            path.push(b'/');
        }
        path
    }
}

/// The folder. It is opened for each look into it, so that a link by which a site is renewed counts at once.
#[derive(Debug, Clone)]
pub(super) struct Root {
    path: PathBuf,
    links: Links,
    /// Whether no name in its path was a link when it was first opened. It says what is tried first, and nothing depends on it.
    is_straight: bool,
}

/// What a path leads to.
#[derive(Debug)]
pub(super) enum Found {
    File(File, Metadata),
    Folder(OwnedFd),
}

/// What a path leads to, without having it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Folder,
    /// Nothing, something that is neither, or something that a link outside has.
    Missing,
}

/// Why there can be no application for a folder.
#[derive(Debug, thiserror::Error)]
#[error("expected a folder that can be read, got \"{}\"", path.display())]
pub struct RootError {
    path: PathBuf,
    #[source]
    cause: io::Error,
}

/// To be read.
const READ: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC).union(OFlags::NOCTTY).union(OFlags::NONBLOCK);
/// To be looked at only, which takes no right to read.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

impl Root {
    pub(super) fn new(path: &Path, links: Links) -> Result<Self, RootError> {
        let refuse = |cause| RootError { path: path.to_owned(), cause };
        let mut root = Self { path: std::path::absolute(path).map_err(refuse)?, links, is_straight: false };
        root.open(ResolveFlags::empty()).map_err(|errno| refuse(errno.into()))?;
        root.is_straight = root.open(ResolveFlags::NO_SYMLINKS).is_ok();
        Ok(root)
    }

    /// The folder's path, absolute, with its links.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What lies at that path. A disk that has to be waited for is waited for elsewhere.
    pub(super) async fn find(&self, path: &Relative) -> Result<Found, LookupError> {
        self.find_for(path, READ).await
    }

    /// What kind of thing lies at that path, be it readable or not.
    pub(super) async fn kind(&self, path: &Relative) -> Result<Kind, LookupError> {
        match self.find_for(path, LOOK).await {
            Ok(Found::File(..)) => Ok(Kind::File),
            Ok(Found::Folder(_)) => Ok(Kind::Folder),
            Err(LookupError::Missing | LookupError::Outside(_)) => Ok(Kind::Missing),
            Err(error) => Err(error),
        }
    }

    async fn find_for(&self, path: &Relative, purpose: OFlags) -> Result<Found, LookupError> {
        // Mostly the system knows every name on the way by heart, and nothing can block.
        match self.open_cached(path.bytes(), purpose) {
            Ok(descriptor) => found(descriptor),
            Err(Errno::AGAIN | Errno::INVAL | Errno::NOSYS | Errno::XDEV) => {
                let (root, path) = (self.clone(), path.clone());
                let looking = tokio::task::spawn_blocking(move || root.find_blocking(&path, purpose));
                looking.await.unwrap_or_else(|error| Err(LookupError::Io(io::Error::other(error))))
            }
            Err(errno) => Err(lookup_error(errno)),
        }
    }

    fn find_blocking(&self, path: &Relative, purpose: OFlags) -> Result<Found, LookupError> {
        let opened = match self.links {
            Links::Within => self.open_beneath(path.bytes(), purpose, ResolveFlags::empty()),
            Links::Anywhere => {
                let path = self.path.join(OsStr::from_bytes(path.bytes()));
                openat(CWD, path, purpose, Mode::empty())
            }
        };
        match opened {
            Ok(descriptor) => found(descriptor),
            // A link that is absolute, or a system that can't keep to a folder by itself: where it leads is looked up first.
            Err(Errno::XDEV | Errno::NOSYS) => self.find_resolved(path, purpose),
            Err(errno) => Err(lookup_error(errno)),
        }
    }

    fn find_resolved(&self, path: &Relative, purpose: OFlags) -> Result<Found, LookupError> {
        let resolve = |path: &Path| {
            path.canonicalize().map_err(|error| match Errno::from_io_error(&error) {
                Some(errno) => lookup_error(errno),
                None => LookupError::Io(error),
            })
        };
        let root = resolve(&self.path)?;
        let target = resolve(&self.path.join(OsStr::from_bytes(path.bytes())))?;
        let Ok(below) = target.strip_prefix(&root) else {
            return Err(LookupError::Outside(self.path.display().to_string()));
        };
        // No link is left in it, so that one that is put there now leads nowhere.
        let flags = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let folder = openat(CWD, &root, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        let folder = folder.map_err(lookup_error)?;
        let name = if below.as_os_str().is_empty() { Path::new(".") } else { below };
        match openat2(&folder, name, purpose, Mode::empty(), flags) {
            Err(Errno::NOSYS) => openat(&folder, name, purpose | OFlags::NOFOLLOW, Mode::empty()),
            opened => opened,
        }
        .map_err(lookup_error)
        .and_then(found)
    }

    fn open(&self, flags: ResolveFlags) -> Result<OwnedFd, Errno> {
        let as_folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match flags.is_empty() {
            true => openat(CWD, &self.path, as_folder, Mode::empty()),
            false => openat2(CWD, &self.path, as_folder, Mode::empty(), flags),
        }
    }

    /// Without waiting for a disk. Where no name on the whole way is a link, what it leads to lies below the folder, and the folder need
    /// not be opened first.
    fn open_cached(&self, path: &[u8], purpose: OFlags) -> Result<OwnedFd, Errno> {
        if self.is_straight {
            let whole = self.path.join(OsStr::from_bytes(path));
            match openat2(CWD, whole, purpose, Mode::empty(), ResolveFlags::CACHED | ResolveFlags::NO_SYMLINKS) {
                Err(Errno::LOOP | Errno::NAMETOOLONG) => {}
                opened => return opened,
            }
        }
        self.open_beneath(path, purpose, ResolveFlags::CACHED)
    }

    fn open_beneath(&self, path: &[u8], purpose: OFlags, flags: ResolveFlags) -> Result<OwnedFd, Errno> {
        let folder = self.open(flags)?;
        let path = if path.is_empty() { b"." } else { path };
        let flags = flags | ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        openat2(folder, path, purpose, Mode::empty(), flags)
    }
}

fn found(descriptor: OwnedFd) -> Result<Found, LookupError> {
    let file = File::from(descriptor);
    let metadata = file.metadata().map_err(LookupError::Io)?;
    match () {
        () if metadata.is_file() => Ok(Found::File(file, metadata)),
        () if metadata.is_dir() => Ok(Found::Folder(file.into())),
        // Pipes, sockets and devices are nobody's to read.
        () => Err(LookupError::Missing),
    }
}

fn lookup_error(errno: Errno) -> LookupError {
    match errno {
        Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG | Errno::NXIO | Errno::NODEV => {
            LookupError::Missing
        }
        Errno::ACCESS | Errno::PERM => LookupError::Denied(errno.into()),
        _ => LookupError::Io(errno.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn relative(path: &str) -> Relative {
        Relative::new(path.as_bytes(), DEFAULT_MAX_PATH).expect(path)
    }

    #[test]
    fn a_path_is_written_in_one_way() {
        for (path, bytes, is_folder) in [
            ("", "", true),
            ("/", "", true),
            ("//", "", true),
            ("/a", "a", false),
            ("a//b///c/", "a/b/c", true),
            ("/%2e%2e/a", "%2e%2e/a", false),
            ("/a\\..\\b", "a\\..\\b", false),
            ("/.well-known/x", ".well-known/x", false),
            ("/a./..b.c", "", false),
        ] {
            match Relative::new(path.as_bytes(), 99) {
                Ok(found) => assert_eq!((found.bytes(), found.is_folder()), (bytes.as_bytes(), is_folder), "{path}"),
                Err(error) => assert_eq!((bytes, error.status()), ("", 404), "{path}"),
            }
        }
    }

    #[test]
    fn dots_nul_and_length_are_refused() {
        for (path, status) in [
            ("/..", 404),
            ("/a/../b", 404),
            ("/./a", 404),
            ("/.env", 404),
            ("/a/.git/config", 404),
            ("/...", 404),
            ("/.well-known2", 404),
            ("/a\0.php", 400),
            ("/aaaaaaaaa", 414),
        ] {
            let limit = if status == 414 { 9 } else { 99 };
            assert_eq!(Relative::new(path.as_bytes(), limit).unwrap_err().status(), status, "{path}");
        }
        assert!(Relative::new(b"/aaaaaaaa", 9).is_ok());
        assert!(Relative::with_hidden(b"/.env", 9).is_ok() && Relative::with_hidden(b"/a/..", 9).is_err());
    }

    #[tokio::test]
    async fn links_are_followed_within_the_folder_and_out_of_it_only_when_told() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::create_dir_all(at("root/folder")).unwrap();
        fs::create_dir_all(at("outside")).unwrap();
        fs::write(at("root/file"), "file").unwrap();
        fs::write(at("outside/secret"), "secret").unwrap();
        symlink("../file", at("root/folder/relative")).unwrap();
        symlink(at("root/file"), at("root/absolute")).unwrap();
        symlink(at("outside/secret"), at("root/out")).unwrap();
        symlink("../outside", at("root/out-folder")).unwrap();
        symlink("loop", at("root/loop")).unwrap();
        symlink("nowhere", at("root/broken")).unwrap();
        symlink(at("root"), at("current")).unwrap();
        let pipe = std::process::Command::new("mkfifo").arg(at("root/pipe")).status().unwrap();
        assert!(pipe.success());
        for base in ["root", "current"] {
            for (links, leaves) in [(Links::Within, false), (Links::Anywhere, true)] {
                let root = Root::new(&at(base), links).unwrap();
                for (path, expected) in [
                    ("file", true),
                    ("folder/relative", true),
                    ("absolute", true),
                    ("out", leaves),
                    ("out-folder/secret", leaves),
                    ("loop", false),
                    ("broken", false),
                    ("folder", false),
                    ("pipe", false),
                    ("file/below", false),
                    ("missing", false),
                ] {
                    let kind = root.kind(&relative(path)).await.expect(path);
                    assert_eq!(kind == Kind::File, expected, "{base} {links:?} {path}");
                    let found = root.find(&relative(path)).await;
                    assert_eq!(matches!(found, Ok(Found::File(..))), expected, "{base} {links:?} {path}");
                }
                assert!(matches!(root.find(&relative("")).await, Ok(Found::Folder(_))));
                assert!(matches!(root.find(&relative("/folder/")).await, Ok(Found::Folder(_))));
            }
        }
        let long = relative(&"x".repeat(300));
        let root = Root::new(&at("root"), Links::Within).unwrap();
        assert!(matches!(root.find(&long).await, Err(LookupError::Missing)));
        assert!(matches!(root.find(&relative("out")).await, Err(LookupError::Outside(_))));
    }

    #[tokio::test]
    async fn a_link_that_is_changed_counts_at_once() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = scratch.path().canonicalize().unwrap();
        let at = |name: &str| folder.join(name);
        for (release, file) in [("1", "old"), ("2", "new"), ("site", "first")] {
            fs::create_dir(at(release)).unwrap();
            fs::write(at(release).join(file), "").unwrap();
        }
        symlink("1", at("current")).unwrap();
        // One that is a link when it is first opened, and one that becomes a link later.
        let roots = ["current", "site"].map(|name| Root::new(&at(name), Links::Within).unwrap());
        assert_eq!(roots.each_ref().map(|root| root.is_straight), [false, true]);
        let found = async |name: &str| {
            let mut kinds = Vec::new();
            for root in &roots {
                kinds.push(root.kind(&relative(name)).await.unwrap());
            }
            kinds
        };
        assert_eq!(found("old").await, [Kind::File, Kind::Missing]);
        assert_eq!(found("first").await, [Kind::Missing, Kind::File]);
        fs::remove_file(at("current")).unwrap();
        fs::rename(at("site"), at("before")).unwrap();
        for name in ["current", "site"] {
            symlink("2", at(name)).unwrap();
        }
        assert_eq!(found("new").await, [Kind::File, Kind::File]);
        assert_eq!(found("first").await, [Kind::Missing, Kind::Missing]);
        for name in ["current", "site"] {
            fs::remove_file(at(name)).unwrap();
            fs::create_dir(at(name)).unwrap();
        }
        assert_eq!(found("new").await, [Kind::Missing, Kind::Missing]);
    }

    #[test]
    fn a_root_that_is_no_folder_is_refused() {
        assert!(Root::new(Path::new("/nowhere"), Links::Within).is_err());
        assert!(Root::new(Path::new("/etc/passwd"), Links::Within).is_err());
    }
}
