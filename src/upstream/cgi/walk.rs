//! Walking the disk from a root to a script, part by part: where the links lead, and who can write to what lies on the way.
//!
//! Each part of the path costs one `lstat`, and its outcome is known before the next part is looked at, so that no link is ever followed
//! unseen. A script that lies right in its root costs two of them, and one `access` for the permission to execute it.
//!
//! The script is executed by its resolved name later, since a script with `#!` can't be executed by a descriptor that is closed on exec. Who may
//! write to the folders on the way can put another file there between the look and the execution: its owner, its group, and root, who
//! may do so before the look as well.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, CWD, FileType, Mode, Stat};
use rustix::io::Errno;

use super::failure::{Failure, PathFault};
use crate::protocol::cgi::Excerpt;

/// The longest name of a file (`NAME_MAX`).
const MAX_NAME_LEN: usize = 255;
/// The longest path, without the NUL at its end (`PATH_MAX`).
pub(super) const MAX_PATH_LEN: usize = 4095;
/// How many links are followed on one way, as many as the kernel follows.
const MAX_LINKS: usize = 40;

/// A folder that scripts may lie in.
#[derive(Debug, Clone)]
pub(super) struct Root {
    /// As it was named, absolute.
    pub(super) named: PathBuf,
    /// All links resolved.
    pub(super) real: PathBuf,
}

/// The border, and who is on this side of it.
#[derive(Debug, Clone)]
pub(super) struct Border {
    pub(super) roots: Vec<Root>,
    /// The users whom a folder that others may add to, such as `/tmp`, is kept from by its sticky bit: root, this process's, the scripts'.
    pub(super) trusted: Vec<u32>,
    /// Whether scripts run as another user than this process, so that its own permissions say nothing about theirs.
    pub(super) other_user: bool,
}

/// Where a walk came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// A folder.
    Folder,
    /// A regular file with these mode bits.
    File(u32),
    /// Nothing is there.
    Missing,
}

/// A way from a root on.
#[derive(Debug)]
pub(super) struct Walk<'a> {
    border: &'a Border,
    /// Where it is: absolute, all links resolved, and no slash at its end, so that `/` is empty.
    location: Vec<u8>,
    /// Who owns the folder that it is in, where that is known.
    owner: Option<u32>,
    links: usize,
    /// Whether folders above this place were not looked at as folders of a root: there were links, or it came in from above.
    indirect: bool,
    /// The first link on the way that root does not own, or that lies in a folder that root does not own.
    untrusted: Option<PathBuf>,
    /// Whether the way is still outside the roots and on its way in: a path that a web server named.
    entering: bool,
}

impl<'a> Walk<'a> {
    /// A way that starts at a root; `None` where the root is gone.
    pub(super) fn from_root(border: &'a Border, root: &Root) -> Result<Option<Self>, Failure> {
        let mut walk = Self::new(border, root.real.as_os_str().as_bytes());
        match walk.look()? {
            Some(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                walk.enter(&stat)?;
                Ok(Some(walk))
            }
            _ => Ok(None),
        }
    }

    /// A way that starts at `/` and has to lead into a root.
    pub(super) fn from_above(border: &'a Border) -> Self {
        let mut walk = Self::new(border, b"");
        walk.entering = true;
        walk
    }

    fn new(border: &'a Border, start: &[u8]) -> Self {
        let mut location = Vec::with_capacity(start.len() + 64);
        location.extend_from_slice(start.strip_suffix(b"/").unwrap_or(start));
        Self { border, location, owner: None, links: 0, indirect: false, untrusted: None, entering: false }
    }

    /// Where it is, for messages and for what is executed.
    pub(super) fn path(&self) -> PathBuf {
        match self.location.is_empty() {
            true => "/".into(),
            false => OsStr::from_bytes(&self.location).into(),
        }
    }

    /// Whether it still has to find its way into a root.
    pub(super) fn is_entering(&self) -> bool {
        self.entering
    }

    /// Goes on by one part of the path, and to wherever the links lead that it is.
    ///
    /// # Errors
    ///
    /// For a part that can't be a file's name, and for all that may not be run: see [`Failure`]. Nothing that lies outside is an error of its
    /// own kind, so that nobody learns what is there.
    pub(super) fn step(&mut self, part: &[u8], variable: &'static str) -> Result<Place, Failure> {
        check_part(part, variable)?;
        let place = self.follow(part);
        match place {
            // What lies beyond the border is nobody's business, whatever it is.
            Ok(_) | Err(_) if !self.entering && self.untrusted.is_some() && !self.is_inside() => Err(self.outside()),
            Ok(place) => {
                if self.entering && self.is_inside() {
                    (self.entering, self.indirect, self.untrusted) = (false, true, None);
                }
                Ok(place)
            }
            Err(failure) => Err(failure),
        }
    }

    /// A copy that can be sent on without losing this place.
    pub(super) fn fork(&self) -> Self {
        Self { location: self.location.clone(), untrusted: self.untrusted.clone(), ..*self }
    }

    /// The file lies outside all roots.
    pub(super) fn outside(&self) -> Failure {
        Failure::OutsideRoot {
            file: self.path(),
            link: self.untrusted.clone(),
            roots: self.border.roots.iter().map(|root| root.real.clone()).collect(),
        }
    }

    /// Checks that the file it came to may be run: not written to by others, nor any folder that it lies in, and executable, unless `interpreted`.
    pub(super) fn finish(&self, mode: u32, interpreted: bool) -> Result<(), Failure> {
        if self.entering {
            return Err(self.outside());
        }
        if is_writable(mode) {
            return Err(Failure::Writable { file: self.path(), path: self.path(), mode: mode & 0o7777 });
        }
        // Without links, each folder was looked at on the way.
        if self.indirect {
            self.check_folders()?;
        }
        if interpreted {
            return Ok(());
        }
        let executable = mode & 0o111 != 0
            && (self.border.other_user
                || rustix::fs::accessat(CWD, &*self.location, Access::EXEC_OK, AtFlags::EACCESS) != Err(Errno::ACCESS));
        match executable {
            true => Ok(()),
            false => Err(Failure::NotExecutable { file: self.path(), mode: mode & 0o7777 }),
        }
    }

    fn follow(&mut self, part: &[u8]) -> Result<Place, Failure> {
        // What links put before the rest of the way, the next part last.
        let mut parts: Vec<Vec<u8>> = vec![part.to_vec()];
        let mut place = Place::Folder;
        while let Some(part) = parts.pop() {
            match &*part {
                b"" | b"." => continue,
                b".." => {
                    self.leave();
                    continue;
                }
                _ => {}
            }
            if self.location.len() + 1 + part.len() > MAX_PATH_LEN {
                return Err(Failure::Inaccessible { path: self.path(), error: Errno::NAMETOOLONG.into() });
            }
            self.location.push(b'/');
            self.location.extend_from_slice(&part);
            let Some(stat) = self.look()? else { return Ok(Place::Missing) };
            match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => self.enter(&stat)?,
                FileType::Symlink => {
                    let target = self.leave_by_link(&stat)?;
                    parts.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                // A link's text that goes on behind a file leads nowhere.
                FileType::RegularFile if parts.iter().any(|part| !part.is_empty()) => return Ok(Place::Missing),
                FileType::RegularFile => place = Place::File(stat.st_mode),
                other => return Err(Failure::NotRegular { file: self.path(), kind: kind(other) }),
            }
        }
        Ok(place)
    }

    /// What is here, not following it; `None` where nothing is.
    fn look(&self) -> Result<Option<Stat>, Failure> {
        let path = if self.location.is_empty() { b"/" } else { &*self.location };
        match rustix::fs::lstat(path) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(Failure::Inaccessible { path: self.path(), error: errno.into() }),
        }
    }

    /// Goes into the folder that it came to.
    fn enter(&mut self, stat: &Stat) -> Result<(), Failure> {
        let sticky = Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX);
        // A sticky folder above a root, such as /tmp, is looked at once more when the whole way is known.
        if is_writable(stat.st_mode) && !self.entering && (!sticky || self.is_inside()) {
            return Err(Failure::Writable { file: self.path(), path: self.path(), mode: stat.st_mode & 0o7777 });
        }
        self.owner = Some(stat.st_uid);
        Ok(())
    }

    fn leave(&mut self) {
        let end = self.location.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        self.location.truncate(end);
        self.owner = None;
    }

    /// Leaves the link that it came to for the folder that the link's text starts from, and returns the text.
    fn leave_by_link(&mut self, stat: &Stat) -> Result<Vec<u8>, Failure> {
        let link = self.path();
        self.indirect = true;
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Failure::TooManyLinks { path: link });
        }
        let target = rustix::fs::readlink(&link, Vec::new())
            .map_err(|errno| Failure::Inaccessible { path: link.clone(), error: errno.into() })?
            .into_bytes();
        let owner = self.owner;
        self.leave();
        self.owner = owner;
        if self.untrusted.is_none() && !(stat.st_uid == 0 && self.folder_is_roots()?) {
            self.untrusted = Some(link);
        }
        if target.starts_with(b"/") {
            self.location.clear();
            self.owner = None;
        }
        Ok(target)
    }

    /// Whether root owns the folder that it is in.
    fn folder_is_roots(&mut self) -> Result<bool, Failure> {
        let owner = match self.owner {
            Some(owner) => owner,
            None => self.look()?.map_or(u32::MAX, |stat| stat.st_uid),
        };
        self.owner = Some(owner);
        Ok(owner == 0)
    }

    fn is_inside(&self) -> bool {
        self.root().is_some()
    }

    /// The root that it is in.
    fn root(&self) -> Option<&'a Root> {
        self.border.roots.iter().find(|root| is_below(&self.location, root.real.as_os_str().as_bytes()))
    }

    /// Checks all folders of the file that it came to: from its root down, and from `/` where it lies outside.
    fn check_folders(&self) -> Result<(), Failure> {
        let file = self.path();
        let folder = file.parent().unwrap_or(Path::new("/"));
        match self.root() {
            Some(root) => check_folders(folder, Some(&root.real), &self.border.trusted),
            None => check_folders(folder, None, &self.border.trusted),
        }
        .map_err(|unfit| match unfit {
            Unfit::Writable { folder, mode } => Failure::Writable { file: file.clone(), path: folder, mode },
            Unfit::Inaccessible { folder, error } => Failure::Inaccessible { path: folder, error },
        })
    }
}

/// Why a folder's content can't be relied on.
#[derive(Debug)]
pub(super) enum Unfit {
    /// Others can write to this folder, which is it or lies above it.
    Writable { folder: PathBuf, mode: u32 },
    /// This folder can't be looked at.
    Inaccessible { folder: PathBuf, error: std::io::Error },
}

/// Checks that others can't change what lies in a folder: that they can't write to it, nor to any folder above it up to `end` (or `/`).
///
/// Above it, a sticky folder such as `/tmp` is fit as well where what lies in it belongs to one of `trusted`: then others can't rename it.
pub(super) fn check_folders(folder: &Path, end: Option<&Path>, trusted: &[u32]) -> Result<(), Unfit> {
    let mut below = None;
    for folder in folder.ancestors() {
        let stat = rustix::fs::lstat(folder)
            .map_err(|errno| Unfit::Inaccessible { folder: folder.into(), error: errno.into() })?;
        let sticky = Mode::from_raw_mode(stat.st_mode).contains(Mode::SVTX);
        let kept = below.is_some_and(|owner| sticky && end.is_none() && trusted.contains(&owner));
        if is_writable(stat.st_mode) && !kept {
            return Err(Unfit::Writable { folder: folder.into(), mode: stat.st_mode & 0o7777 });
        }
        if end == Some(folder) {
            break;
        }
        below = Some(stat.st_uid);
    }
    Ok(())
}

/// Whether a path is that folder or lies in it, both absolute and resolved.
pub(super) fn is_below(path: &[u8], folder: &[u8]) -> bool {
    let folder = folder.strip_suffix(b"/").unwrap_or(folder);
    path.strip_prefix(folder).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
}

/// Whether others than owner and group can write to it.
pub(super) fn is_writable(mode: u32) -> bool {
    Mode::from_raw_mode(mode).contains(Mode::WOTH)
}

/// Refuses what is no file's name, or is one on other systems only.
fn check_part(part: &[u8], variable: &'static str) -> Result<(), Failure> {
    let fault = match part {
        b"." | b".." => PathFault::Dots,
        b"" => PathFault::EmptyPart,
        part if part.contains(&0) => PathFault::Nul,
        part if part.contains(&b'\\') => PathFault::Backslash,
        part if part.len() > MAX_NAME_LEN => PathFault::TooLong { len: part.len(), limit: MAX_NAME_LEN },
        _ => return Ok(()),
    };
    Err(Failure::BadPath { variable, path: Excerpt::new(part), fault })
}

fn kind(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Fifo => "a fifo",
        FileType::Socket => "a socket",
        FileType::CharacterDevice => "a character device",
        FileType::BlockDevice => "a block device",
        _ => "something else",
    }
}
