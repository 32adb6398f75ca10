//! Users and groups by name, as the system's name service knows them.
#![expect(unsafe_code, reason = "only libc asks every source of accounts that the machine is set up for")]

use std::ffi::{CStr, CString, c_char, c_int};
use std::io;
use std::mem::MaybeUninit;
use std::ptr::null_mut;

use super::Identity;

/// How long an entry of the name service may be, in bytes. Groups with many members are long.
const LONGEST_ENTRY: usize = 4 * 1024 * 1024;
/// In how many groups an account may be: as many as the kernel takes.
const MOST_GROUPS: usize = 65_536;

pub(super) fn of_names(user: &str, group: Option<&str>) -> io::Result<Identity> {
    let account = account(user)?;
    let gid = group.map(group_number).transpose()?;
    match (account, gid) {
        (Some((uid, own, name)), gid) => {
            let gid = gid.unwrap_or(own);
            Ok(Identity { uid, gid, groups: groups(&name, gid)? })
        }
        (None, Some(gid)) => match user.parse() {
            Ok(uid) => Ok(Identity { uid, gid, groups: vec![gid] }),
            Err(_) => Err(missing("user", user)),
        },
        (None, None) if user.parse::<u32>().is_ok() => Err(io::Error::new(
            io::ErrorKind::NotFound,
            format!("expected a group beside user {user}, who has no account that names one"),
        )),
        (None, None) => Err(missing("user", user)),
    }
}

fn missing(what: &str, name: &str) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("expected the name or number of a {what}, got {name:?}"))
}

/// A user's number, first group and name.
fn account(user: &str) -> io::Result<Option<(u32, u32, CString)>> {
    let name = CString::new(user)?;
    // SAFETY: in each call all pointers are to what lives longer, the size is that of the buffer.
    let by_name = entry(
        |entry, buffer, size, found| unsafe { libc::getpwnam_r(name.as_ptr(), entry, buffer, size, found) },
        copy,
    )?;
    match (by_name, user.parse::<u32>()) {
        (None, Ok(uid)) => entry(
            // SAFETY: as above.
            |entry, buffer, size, found| unsafe { libc::getpwuid_r(uid, entry, buffer, size, found) },
            copy,
        ),
        (found, _) => Ok(found),
    }
}

fn copy(account: &libc::passwd) -> (u32, u32, CString) {
    // SAFETY: the name of an account that was found is a string in the buffer.
    (account.pw_uid, account.pw_gid, unsafe { CStr::from_ptr(account.pw_name) }.to_owned())
}

fn group_number(group: &str) -> io::Result<u32> {
    let name = CString::new(group)?;
    let found = entry(
        // SAFETY: all pointers are to what lives longer, the size is that of the buffer.
        |entry, buffer, size, found| unsafe { libc::getgrnam_r(name.as_ptr(), entry, buffer, size, found) },
        |group: &libc::group| group.gr_gid,
    )?;
    found.or_else(|| group.parse().ok()).ok_or_else(|| missing("group", group))
}

/// Asks for an entry with ever larger buffers.
fn entry<E, T>(
    ask: impl Fn(*mut E, *mut c_char, usize, *mut *mut E) -> c_int,
    take: impl FnOnce(&E) -> T,
) -> io::Result<Option<T>> {
    let mut size = 4096;
    loop {
        let mut buffer = vec![0_u8; size];
        let mut entry = MaybeUninit::<E>::uninit();
        let mut found = null_mut();
        match ask(entry.as_mut_ptr(), buffer.as_mut_ptr().cast(), size, &mut found) {
            0 if found.is_null() => return Ok(None),
            // SAFETY: what was found is the entry, written by the call; its strings are in the buffer, which is still there.
            0 => return Ok(Some(take(unsafe { entry.assume_init_ref() }))),
            libc::ERANGE if size < LONGEST_ENTRY => size *= 4,
            libc::EINTR => {}
            // What the name services say where there is no such entry.
            libc::ENOENT | libc::ESRCH => return Ok(None),
            error => return Err(io::Error::from_raw_os_error(error)),
        }
    }
}

/// All groups of an account, the given one among them.
fn groups(name: &CStr, gid: u32) -> io::Result<Vec<u32>> {
    let mut size = 64;
    loop {
        let mut groups = vec![0_u32; size];
        let mut count = size as c_int;
        // SAFETY: the name is a string, and the count is that of the list.
        let fits = unsafe { libc::getgrouplist(name.as_ptr(), gid, groups.as_mut_ptr(), &mut count) } >= 0;
        if fits {
            groups.truncate(usize::try_from(count).unwrap_or_default());
            return Ok(groups);
        }
        if size >= MOST_GROUPS {
            return Err(io::Error::other(format!("expected at most {MOST_GROUPS} groups of an account")));
        }
        size *= 4;
    }
}
