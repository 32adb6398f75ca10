//! The access log: a file that is opened anew after logrotate has moved it, or standard output.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::signal::unix::{SignalKind, signal};

/// Where lines of the access log go. Copies write to the same file.
#[derive(Debug, Clone)]
pub(super) enum LogFile {
    StandardOutput,
    File { path: PathBuf, file: Arc<Mutex<File>> },
}

impl LogFile {
    /// `-` is standard output. A file is added to, and made 0640 where there is none: it names people.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::StandardOutput);
        }
        let path = std::path::absolute(path)?;
        let file = Arc::new(Mutex::new(append(&path)?));
        Ok(Self::File { path, file })
    }

    /// Opens the file anew at each SIGHUP, as logrotate's users expect. To be called within the runtime.
    pub(super) fn reopen_at_hangup(&self) {
        let Self::File { path, file } = self else { return };
        let (path, file) = (path.clone(), file.clone());
        let mut hangups = match signal(SignalKind::hangup()) {
            Ok(hangups) => hangups,
            Err(error) => return tracing::warn!(%error, "SIGHUP can't be waited for: the access log stays as it is"),
        };
        tokio::spawn(async move {
            while hangups.recv().await.is_some() {
                match append(&path) {
                    Ok(new) => *file.lock().unwrap_or_else(PoisonError::into_inner) = new,
                    Err(error) => {
                        tracing::error!(%error, "{}: the access log could not be opened anew", path.display());
                    }
                }
            }
        });
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match self {
            Self::StandardOutput => io::stdout().lock().write(line),
            Self::File { file, .. } => file.lock().unwrap_or_else(PoisonError::into_inner).write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::StandardOutput => io::stdout().lock().flush(),
            Self::File { .. } => Ok(()),
        }
    }
}
