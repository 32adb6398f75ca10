//! Where a conversion is written: standard output, a file, or a folder of folders.

use std::fs::{self, File};
use std::io::{self, BufWriter, IsTerminal, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::ToForm;

pub(super) enum Output {
    Stream { stream: BufWriter<Box<dyn Write>>, name: String },
    Folder(PathBuf),
}

impl Output {
    pub(super) fn open(path: Option<&Path>, to: ToForm, files: &[PathBuf]) -> anyhow::Result<Self> {
        if to == ToForm::Cgi {
            let Some(folder) = path.filter(|path| *path != Path::new("-")) else {
                bail!("expected --output with a folder for --to cgi, which writes one for each request");
            };
            fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            // What is there already could be taken for a request.
            if fs::read_dir(folder).with_context(|| folder.display().to_string())?.next().is_some() {
                bail!("{}: expected a folder that is empty, or none", folder.display());
            }
            return Ok(Self::Folder(folder.to_owned()));
        }
        let (stream, name): (Box<dyn Write>, _) = match path {
            None if to == ToForm::Fastcgi && io::stdout().is_terminal() => {
                bail!("expected --output or a pipe for --to fastcgi, which a terminal can't show")
            }
            Some(path) if path != Path::new("-") => {
                let name = path.display().to_string();
                let number = |path: &Path| fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
                let is_input = number(path).is_some_and(|own| files.iter().any(|file| number(file) == Some(own)));
                if is_input && path.is_file() {
                    bail!("{name}: expected another file than the one that is read");
                }
                (Box::new(File::create(path).with_context(|| name.clone())?), name)
            }
            _ => (Box::new(io::stdout()), "standard output".into()),
        };
        Ok(Self::Stream { stream: BufWriter::with_capacity(64 * 1024, stream), name })
    }

    pub(super) fn write(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.stream()?.write_all(bytes)?;
        Ok(())
    }

    pub(super) fn stream(&mut self) -> anyhow::Result<&mut dyn Write> {
        match self {
            Self::Stream { stream, .. } => Ok(stream),
            Self::Folder(folder) => bail!("{}: expected a file, got a folder", folder.display()),
        }
    }

    /// The folder of the request with this number.
    pub(super) fn folder(&self, number: u64) -> anyhow::Result<PathBuf> {
        match self {
            Self::Folder(folder) => Ok(folder.join(format!("{number:06}"))),
            Self::Stream { name, .. } => bail!("{name}: expected a folder, got a file"),
        }
    }

    pub(super) fn finish(&mut self) -> anyhow::Result<()> {
        if let Self::Stream { stream, .. } = self {
            stream.flush()?;
        }
        Ok(())
    }
}
