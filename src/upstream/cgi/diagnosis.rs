//! Finding out why a script that was found could not be started: the interpreter in its first line, its working directory, its rights.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;

use super::failure::Failure;
use super::script::Script;
use super::spawn::{SpawnError, Step};
use crate::protocol::cgi::Excerpt;

/// What went wrong at a step to a running script. For the last step, executing it, the reason is looked for on the disk: see [`why_not_started`].
pub fn not_started(script: &Script, error: SpawnError) -> Failure {
    match error.step {
        Step::Exec => why_not_started(script, error.source),
        Step::Directory => Failure::WrongFolder { folder: script.directory.clone(), error: error.source },
        step => Failure::CannotStart { file: script.file.clone(), step: step.to_string().into(), error: error.source },
    }
}

/// Finds out why the system did not execute a script that had been found: the interpreter named in its first line, its working
/// directory, its rights. It looks at the disk, which is no work for requests that go well.
pub fn why_not_started(script: &Script, error: io::Error) -> Failure {
    let file = script.file.clone();
    let program = Path::new(OsStr::from_bytes(script.program.as_bytes()));
    match Errno::from_io_error(&error) {
        Some(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS | Errno::PERM | Errno::NOEXEC) => {}
        _ => return Failure::CannotStart { file, step: "".into(), error },
    }
    if let Err(error) = fs::read_dir(&script.directory).map(drop)
        && error.kind() != ErrorKind::PermissionDenied
    {
        return Failure::WrongFolder { folder: script.directory.clone(), error };
    }
    let mode = match fs::metadata(&file) {
        Ok(metadata) => metadata.permissions().mode() & 0o7777,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Failure::NotFound { looked: vec![file], named: true };
        }
        Err(error) => return Failure::Inaccessible { path: file, error },
    };
    // The interpreter for its ending.
    if program != file {
        return why_no_interpreter(file, program.to_owned(), false).unwrap_or_else(|file| Failure::CannotStart {
            file,
            step: "".into(),
            error,
        });
    }
    if mode & 0o111 == 0 || rustix::fs::access(&file, Access::EXEC_OK).is_err() {
        return Failure::NotExecutable { file, mode };
    }
    // A program that may be executed and not read keeps its reason to itself.
    let Ok(start) = first_bytes(&file) else { return Failure::CannotStart { file, step: "".into(), error } };
    if let Some((interpreter, carriage_return)) = shebang(&start) {
        return match why_no_interpreter(file, interpreter, carriage_return) {
            Ok(failure) => failure,
            // The interpreter is fine: then it is this user's rights to the file, or a chain of interpreters.
            Err(file) if error.kind() == ErrorKind::PermissionDenied => Failure::NotExecutable { file, mode },
            Err(file) => Failure::CannotStart { file, step: "".into(), error },
        };
    }
    match Errno::from_io_error(&error) {
        Some(Errno::NOEXEC) => Failure::NoInterpreter { file, start: Excerpt::new(&start) },
        Some(Errno::NOENT) if start.starts_with(b"\x7fELF") => {
            Failure::InterpreterMissing { file, interpreter: None, carriage_return: false }
        }
        Some(Errno::ACCESS | Errno::PERM) => Failure::NotExecutable { file, mode },
        _ => Failure::CannotStart { file, step: "".into(), error },
    }
}

/// What is wrong with an interpreter; the script's file back where nothing is.
fn why_no_interpreter(file: PathBuf, interpreter: PathBuf, carriage_return: bool) -> Result<Failure, PathBuf> {
    match fs::metadata(&interpreter) {
        Ok(metadata) if metadata.is_file() && rustix::fs::access(&interpreter, Access::EXEC_OK).is_ok() => Err(file),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Ok(Failure::InterpreterMissing { file, interpreter: Some(interpreter), carriage_return })
        }
        _ => Ok(Failure::InterpreterDenied { file, interpreter }),
    }
}

/// What the kernel looks at to tell how a file is executed.
fn first_bytes(file: &Path) -> io::Result<Vec<u8>> {
    const KERNEL_LOOKS_AT: u64 = 256;
    let mut start = Vec::new();
    File::open(file)?.take(KERNEL_LOOKS_AT).read_to_end(&mut start)?;
    Ok(start)
}

/// The interpreter in a first line, read as the kernel reads it: up to a blank or the line's end, so that a carriage return is a part of
/// its name. The second says whether there is one.
fn shebang(start: &[u8]) -> Option<(PathBuf, bool)> {
    let line = start.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let name = line.split(|byte| matches!(byte, b' ' | b'\t' | 0)).find(|word| !word.is_empty())?;
    Some((OsStr::from_bytes(name).into(), name.ends_with(b"\r")))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;
    use crate::application::Environ;
    use crate::upstream::cgi::config::Config;
    use crate::upstream::cgi::script::Finder;

    fn write(folder: &Path, name: &str, content: &[u8], mode: u32) -> PathBuf {
        let path = folder.join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path
    }

    fn script(folder: &Path, name: &str) -> Script {
        let config = Config { roots: vec![folder.into()], ..Config::default() };
        let sent = [("PATH_INFO", format!("/{name}"))].into_iter().collect();
        Finder::new(&config).unwrap().find(&Environ::new(sent)).unwrap()
    }

    /// Why it is not started, the reason being what the system says when it is.
    fn why(script: &Script) -> Failure {
        let arguments = script.arguments.iter().map(|each| OsStr::from_bytes(each.as_bytes()));
        let mut command = Command::new(OsStr::from_bytes(script.program.as_bytes()));
        command.args(arguments.skip(1)).env_clear();
        loop {
            match command.spawn() {
                // Another test starts a process, which has inherited the descriptor that the script was just written with.
                Err(error) if error.kind() == ErrorKind::ExecutableFileBusy => std::thread::yield_now(),
                Err(error) => return why_not_started(script, error),
                Ok(mut child) => panic!("{script:?} started: {:?}", child.wait()),
            }
        }
    }

    #[test]
    fn a_script_without_an_interpreter_says_so() {
        let folder = tempfile::tempdir().unwrap();
        for (content, shown) in [
            (&b"print('hello')\n"[..], "begins with \"print(\\'hello\\')\\n\""),
            (b"", "begins with \"\""),
            (b"\xef\xbb\xbf#!/bin/sh\n", "begins with \"\\xef\\xbb\\xbf#!/bin/sh\\n\""),
            (b"\n#!/bin/sh\n", "begins with \"\\n#!/bin/sh\\n\""),
            (b"#!\n", "begins with \"#!\\n\""),
        ] {
            write(folder.path(), "x", content, 0o755);
            let failure = why(&script(folder.path(), "x"));
            assert!(matches!(failure, Failure::NoInterpreter { .. }), "{failure:?}");
            assert!(failure.cause().contains(shown), "{failure}");
            assert!(failure.mend().contains("#!/bin/sh"));
            assert_eq!(failure.status(), 500);
        }
        write(folder.path(), "x", b"\x7fELF for another machine", 0o755);
        let failure = why(&script(folder.path(), "x"));
        assert!(failure.mend().contains("for this machine"), "{failure}");
    }

    #[test]
    fn an_interpreter_that_is_missing_is_named() {
        let folder = tempfile::tempdir().unwrap();
        for (content, name, carriage_return) in [
            (&b"#!/none/python\n"[..], "/none/python", false),
            (b"#! \t/none/python -u x\n", "/none/python", false),
            (b"#!/bin/sh\r\necho\r\n", "/bin/sh\r", true),
            (b"#!/bin/sh/x\n", "/bin/sh/x", false),
            (b"#!/none/python", "/none/python", false),
        ] {
            write(folder.path(), "x", content, 0o755);
            let failure = why(&script(folder.path(), "x"));
            match &failure {
                Failure::InterpreterMissing { interpreter: Some(interpreter), carriage_return: ends, .. } => {
                    assert_eq!((interpreter.to_str().unwrap(), *ends), (name, carriage_return));
                }
                failure => panic!("{failure:?}"),
            }
            assert_eq!(failure.cause().contains("carriage return"), carriage_return, "{failure}");
            assert_eq!(failure.mend().contains("line ends"), carriage_return);
            assert_eq!(failure.status(), 500);
        }
    }

    #[test]
    fn an_interpreter_that_may_not_be_executed_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let interpreter = write(folder.path(), "interpreter", b"#!/bin/sh\n", 0o644);
        for interpreter in [interpreter, folder.path().into()] {
            write(folder.path(), "x", format!("#!{}\n", interpreter.display()).as_bytes(), 0o755);
            let failure = why(&script(folder.path(), "x"));
            assert!(
                matches!(&failure, Failure::InterpreterDenied { interpreter: named, .. } if *named == interpreter),
                "{failure:?}"
            );
        }
    }

    #[test]
    fn a_binary_whose_loader_is_missing_is_told_apart_from_a_missing_file() {
        let folder = tempfile::tempdir().unwrap();
        let mut binary = fs::read("/bin/true").unwrap();
        let loader = binary.windows(5).position(|five| five == b"/lib6" || five == b"/lib/").unwrap();
        binary[loader + 1] = b'X';
        write(folder.path(), "x", &binary, 0o755);
        let failure = why(&script(folder.path(), "x"));
        assert!(matches!(failure, Failure::InterpreterMissing { interpreter: None, .. }), "{failure:?}");
        let found = script(folder.path(), "x");
        fs::remove_file(folder.path().join("x")).unwrap();
        assert!(matches!(why(&found), Failure::NotFound { named: true, .. }));
    }

    #[test]
    fn an_interpreter_by_ending_that_went_away_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "x.py", b"", 0o644);
        let interpreter = write(folder.path(), "python", b"#!/bin/sh\n", 0o755);
        let interpreters = vec![(".py".into(), interpreter.clone())];
        let config = Config { roots: vec![folder.path().into()], interpreters, ..Config::default() };
        let sent = [("PATH_INFO", "/x.py")].into_iter().collect();
        let script = Finder::new(&config).unwrap().find(&Environ::new(sent)).unwrap();
        fs::remove_file(&interpreter).unwrap();
        let failure = why(&script);
        assert!(
            matches!(&failure, Failure::InterpreterMissing { interpreter: Some(named), .. } if *named == interpreter),
            "{failure:?}"
        );
    }

    #[test]
    fn a_working_directory_that_went_away_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "x", b"#!/bin/sh\n", 0o755);
        let found = Script { directory: folder.path().join("gone"), ..script(folder.path(), "x") };
        let failure = why_not_started(&found, io::Error::from_raw_os_error(libc::ENOENT));
        assert!(matches!(failure, Failure::WrongFolder { .. }), "{failure:?}");
        let source = io::Error::from_raw_os_error(libc::ENOENT);
        let failure = not_started(&found, SpawnError { step: Step::Directory, source });
        assert!(failure.cause().contains("gone"), "{failure}");
    }

    #[test]
    fn the_systems_word_stands_where_nothing_else_is_found() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "x", b"#!/bin/sh\n", 0o755);
        let found = script(folder.path(), "x");
        for (errno, status) in [
            (libc::E2BIG, 431),
            (libc::EAGAIN, 503),
            (libc::ENOMEM, 503),
            (libc::EMFILE, 503),
            (libc::ETXTBSY, 503),
            (libc::ELOOP, 500),
            (libc::EIO, 500),
            (libc::ENOENT, 500),
        ] {
            let failure = why_not_started(&found, io::Error::from_raw_os_error(errno));
            assert!(matches!(failure, Failure::CannotStart { .. }), "{failure:?}");
            assert_eq!(failure.status(), status, "{failure}");
            assert!(failure.cause().contains(&io::Error::from_raw_os_error(errno).to_string()), "{failure}");
        }
        let source = io::Error::from_raw_os_error(libc::EMFILE);
        let failure = not_started(&found, SpawnError { step: Step::Pipes, source });
        assert!(failure.cause().contains("no pipe for the program"), "{failure}");
        let denied = why_not_started(&found, io::Error::from_raw_os_error(libc::EACCES));
        assert!(matches!(denied, Failure::NotExecutable { mode: 0o755, .. }), "{denied:?}");
        assert!(denied.mend().contains("noexec"));
    }
}
