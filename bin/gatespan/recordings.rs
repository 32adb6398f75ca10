//! The files that convert and decode read: opened, recognised, read to their end or as they grow.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{fs, thread};

use anyhow::{Context, bail};
use clap::ValueEnum;
use gatespan::recording::capture::Settings;
use gatespan::recording::form::{self, ExchangeReadError, ExchangeReader, Form, RECOGNISED_FROM, cgi};
use gatespan::recording::{
    CaptureReader, ConnectionId, Direction, Entry, EntryReader, Exchange, InRecords, LogReader, Spool,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// A form that can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FromForm {
    /// Records as they stand on the wire, of one direction or both
    Fastcgi,
    /// A line of JSON for each record
    Json,
    /// Folders that --to cgi has written
    Cgi,
    /// Messages of HTTP/1.1: request, answer, request, answer
    Http,
    /// A capture of packets, by tcpdump or Wireshark
    Pcap,
    /// The same in the newer format
    Pcapng,
    /// What gatespan tap has recorded
    Tap,
}

/// To whom all records of a file pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OneWay {
    /// From the web server
    Application,
    /// From the application
    WebServer,
}

impl From<OneWay> for Direction {
    fn from(way: OneWay) -> Self {
        match way {
            OneWay::Application => Self::ToApplication,
            OneWay::WebServer => Self::ToWebServer,
        }
    }
}

/// How files are read.
#[derive(Debug)]
pub(crate) struct Reading {
    pub(crate) from: Option<FromForm>,
    pub(crate) direction: Option<OneWay>,
    /// Which ports of captures are applications' own.
    pub(crate) ports: Vec<u16>,
    /// Where bodies are held.
    pub(crate) spool: Spool,
    /// Goes on with files that grow, until this is set.
    pub(crate) follow: Option<Arc<AtomicBool>>,
}

/// What is read, one after the other.
pub(crate) enum Item {
    Entry(Entry),
    Exchange(Box<Exchange>),
}

/// Numbers connections on from file to file.
#[derive(Debug, Default)]
pub(crate) struct Numbering {
    before: u64,
    most: u64,
}

impl Numbering {
    fn number(&mut self, connection: ConnectionId) -> ConnectionId {
        let number = self.before.saturating_add(connection.0);
        self.most = self.most.max(number);
        ConnectionId(number)
    }

    fn next_file(&mut self) {
        self.before = self.most;
    }
}

impl Reading {
    /// Reads a file to its end and gives out what it holds, each with the number of bytes that were read. Gives back what is to be said of a file that
    /// is whole, and does not show what one would expect.
    ///
    /// What is broken in the file itself is an error after all that stood before it was given out.
    pub(crate) fn read(
        &self,
        path: &Path,
        numbering: &mut Numbering,
        each: &mut dyn FnMut(Item, u64) -> anyhow::Result<()>,
    ) -> anyhow::Result<Option<String>> {
        let name = name(path);
        numbering.next_file();
        if path != Path::new("-") && path.is_dir() {
            if self.from.is_some_and(|from| from != FromForm::Cgi) {
                bail!("{name}: expected a file, got a folder, which only the form cgi is in");
            }
            return self.read_folders(path, &mut numbered(numbering, each)).map(|()| None);
        }
        let mut source = None;
        loop {
            let mut file = Input::open(path).with_context(|| name.clone())?;
            let current = match &mut source {
                Some(source) => source,
                None => source.insert(self.source(&mut file).with_context(|| name.clone())?),
            };
            let read = self.read_open(&mut file, current, &mut numbered(numbering, each));
            let is_replaced = read.map_err(|error| match error {
                Failure::Read(error) => anyhow::Error::from(error).context(name.clone()),
                Failure::Each(error) => error,
            })?;
            if !is_replaced {
                return Ok(current.left_out().map(|left_out| format!("{name}: {left_out}")));
            }
            if !current.goes_on() {
                source = None;
                numbering.next_file();
            }
        }
    }

    /// Reads to the end; true when another file has taken the name meanwhile.
    fn read_open(
        &self,
        file: &mut Input,
        source: &mut Source,
        each: &mut dyn FnMut(Item, u64) -> anyhow::Result<()>,
    ) -> Result<bool, Failure> {
        let mut buffer = vec![0; 64 * 1024];
        let mut was_replaced = false;
        loop {
            let is_interrupted = self.is_interrupted();
            // Who waits for a pipe would not see that it is to end.
            if self.follow.is_some() && !is_interrupted && !file.is_readable().map_err(read_failed)? {
                continue;
            }
            let len = match is_interrupted {
                true => 0,
                false => match file.read(&mut buffer) {
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    read => read.map_err(read_failed)?,
                },
            };
            if len > 0 {
                source.receive(&buffer[..len]);
                source.give_out(file.offset, each)?;
                continue;
            }
            if self.wait(file) {
                continue;
            }
            let is_replaced = self.follow.is_some() && !self.is_interrupted() && file.is_replaced();
            // Something may have been added before another file took the name.
            if is_replaced && !was_replaced {
                was_replaced = true;
                continue;
            }
            if !(is_replaced && source.goes_on()) {
                source.end();
                source.give_out(file.offset, each)?;
            }
            return Ok(is_replaced);
        }
    }

    fn is_interrupted(&self) -> bool {
        self.follow.as_ref().is_some_and(|interrupted| interrupted.load(Ordering::Relaxed))
    }

    /// At the end of a file that may grow: waits, and says whether to read on.
    fn wait(&self, file: &Input) -> bool {
        if self.follow.is_none() || self.is_interrupted() || !file.is_regular || file.is_replaced() {
            return false;
        }
        thread::sleep(Duration::from_millis(100));
        true
    }

    fn source(&self, file: &mut Input) -> anyhow::Result<Source> {
        let from = match self.from {
            Some(from) => from,
            None => self.recognise(file)?,
        };
        let entries = |reader: Box<dyn EntryReader>| Ok(Source::Entries(reader));
        match from {
            FromForm::Fastcgi => entries(Box::new(match self.direction {
                None => form::fastcgi::Reader::default(),
                Some(way) => form::fastcgi::Reader::one_way(way.into()),
            })),
            FromForm::Json => entries(Box::<form::json::Reader>::default()),
            FromForm::Http => Ok(Source::Exchanges(Box::new(form::http::Reader::new(self.spool.clone())))),
            FromForm::Pcap | FromForm::Pcapng => {
                let settings = Settings { ports: self.ports.clone(), ..Settings::default() };
                Ok(Source::Capture(Box::new(InRecords::new(CaptureReader::new(settings))), false))
            }
            FromForm::Tap => Ok(Source::Tap(Box::new(InRecords::new(LogReader::new())))),
            FromForm::Cgi => bail!("expected a folder, which the form cgi is in, got a file"),
        }
    }

    fn recognise(&self, file: &mut Input) -> anyhow::Result<FromForm> {
        while file.start.len() < RECOGNISED_FROM {
            if self.follow.is_some() && !self.is_interrupted() && !file.is_readable()? {
                continue;
            }
            if self.is_interrupted() {
                break;
            }
            let mut buffer = [0; RECOGNISED_FROM];
            let len = file.source.read(&mut buffer[file.start.len()..])?;
            // Of a file that is about to be written there may be nothing yet.
            if len == 0 && !(file.start.is_empty() && self.wait(file)) {
                break;
            }
            file.start.extend_from_slice(&buffer[..len]);
        }
        Ok(match form::recognise(&file.start) {
            Some(Form::Fastcgi) => FromForm::Fastcgi,
            Some(Form::Json) => FromForm::Json,
            Some(Form::Http) => FromForm::Http,
            Some(Form::Pcap) => FromForm::Pcap,
            Some(Form::Pcapng) => FromForm::Pcapng,
            Some(Form::Tap) => FromForm::Tap,
            // Nothing has passed: in any form that is the same.
            None if file.start.is_empty() => FromForm::Fastcgi,
            None => bail!(
                "at byte 0: expected FastCGI records, lines of JSON, HTTP messages, a capture or a recording of gatespan tap, got \"{}\"; \
                 --from names the form of what does not look like it",
                file.start.escape_ascii()
            ),
        })
    }

    fn read_folders(&self, folder: &Path, each: &mut dyn FnMut(Item, u64) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let mut folders: Vec<PathBuf> = vec![folder.to_owned()];
        if !cgi::is_exchange(folder) {
            let listed = fs::read_dir(folder).with_context(|| name(folder))?;
            let listed: io::Result<Vec<_>> = listed.map(|entry| Ok(entry?.path())).collect();
            folders = listed.with_context(|| name(folder))?.into_iter().filter(|path| cgi::is_exchange(path)).collect();
            folders.sort();
            if folders.is_empty() {
                bail!(
                    "{}: expected a file named environment in it, or in the folders in it, got neither",
                    name(folder)
                );
            }
        }
        for (at, folder) in folders.iter().enumerate() {
            let exchange = cgi::read(folder, ConnectionId(at as u64 + 1), &self.spool).with_context(|| name(folder))?;
            each(Item::Exchange(Box::new(exchange)), 0)?;
        }
        Ok(())
    }
}

/// Gives out with connections numbered on.
fn numbered<'a>(
    numbering: &'a mut Numbering,
    each: &'a mut dyn FnMut(Item, u64) -> anyhow::Result<()>,
) -> impl FnMut(Item, u64) -> anyhow::Result<()> + 'a {
    move |mut item, read| {
        match &mut item {
            Item::Entry(entry) => entry.connection = numbering.number(entry.connection),
            Item::Exchange(exchange) => exchange.connection = numbering.number(exchange.connection),
        }
        each(item, read)
    }
}

/// Why reading ended early: the file, or whoever was given what it holds.
enum Failure {
    Read(ExchangeReadError),
    Each(anyhow::Error),
}

fn read_failed(error: io::Error) -> Failure {
    Failure::Read(error.into())
}

/// A file, pipe or standard input.
struct Input {
    source: File,
    /// What was read to recognise its form, and is to be read first.
    start: Vec<u8>,
    /// How much was given out.
    offset: u64,
    is_regular: bool,
    /// Where it stands, and the number of its file.
    path: Option<(PathBuf, u64)>,
}

impl Input {
    fn open(path: &Path) -> io::Result<Self> {
        let is_standard_input = path == Path::new("-");
        let source = match is_standard_input {
            true => File::from(io::stdin().as_fd().try_clone_to_owned()?),
            false => File::open(path)?,
        };
        let metadata = source.metadata()?;
        let path = (!is_standard_input).then(|| (path.to_owned(), metadata.ino()));
        Ok(Self { source, start: Vec::new(), offset: 0, is_regular: metadata.is_file(), path })
    }

    /// Whether something can be read within a moment: a file's end counts, too.
    fn is_readable(&self) -> io::Result<bool> {
        let mut descriptors = [PollFd::new(&self.source, PollFlags::IN)];
        let moment = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
        match poll(&mut descriptors, Some(&moment)) {
            Err(rustix::io::Errno::INTR) => Ok(false),
            ready => Ok(ready? > 0),
        }
    }

    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let len = match self.start.is_empty() {
            true => self.source.read(buffer)?,
            false => {
                let len = self.start.len().min(buffer.len());
                buffer[..len].copy_from_slice(&self.start[..len]);
                self.start.drain(..len);
                len
            }
        };
        self.offset += len as u64;
        Ok(len)
    }

    /// Whether another file has this one's name now, as after a rotation.
    fn is_replaced(&self) -> bool {
        let Some((path, number)) = &self.path else { return false };
        self.is_regular && fs::metadata(path).is_ok_and(|metadata| metadata.ino() != *number)
    }
}

enum Source {
    Entries(Box<dyn EntryReader>),
    /// A capture, and whether anything was found in it.
    Capture(Box<InRecords<CaptureReader>>, bool),
    /// A recording of gatespan tap.
    Tap(Box<dyn EntryReader>),
    Exchanges(Box<dyn ExchangeReader>),
}

impl Source {
    /// Whether connections go on in the file that follows after a rotation.
    fn goes_on(&self) -> bool {
        matches!(self, Self::Tap(_))
    }

    /// What a capture has that was not given out, where it may be missed.
    fn left_out(&self) -> Option<String> {
        let Self::Capture(reader, has_found) = self else { return None };
        let left_out = reader.reader().left_out();
        let is_missed = left_out.fragments + left_out.unreadable + left_out.given_up > 0;
        match has_found {
            false => Some(format!("expected connections that carry FastCGI, got none; left out: {left_out}")),
            true => is_missed.then(|| format!("left out: {left_out}")),
        }
    }

    fn receive(&mut self, bytes: &[u8]) {
        match self {
            Self::Entries(reader) | Self::Tap(reader) => reader.receive(bytes),
            Self::Capture(reader, _) => reader.receive(bytes),
            Self::Exchanges(reader) => reader.receive(bytes),
        }
    }

    fn end(&mut self) {
        match self {
            Self::Entries(reader) | Self::Tap(reader) => reader.end(),
            Self::Capture(reader, _) => reader.end(),
            Self::Exchanges(reader) => reader.end(),
        }
    }

    /// Gives out all there is.
    fn give_out(&mut self, read: u64, each: &mut dyn FnMut(Item, u64) -> anyhow::Result<()>) -> Result<(), Failure> {
        loop {
            let item = match self {
                Self::Entries(reader) | Self::Tap(reader) => {
                    reader.next().map(|entry| entry.map(Item::Entry)).map_err(Into::into)
                }
                Self::Capture(reader, has_found) => {
                    let entry = reader.next();
                    *has_found |= matches!(entry, Ok(Some(_)));
                    entry.map(|entry| entry.map(Item::Entry)).map_err(Into::into)
                }
                Self::Exchanges(reader) => {
                    reader.next().map(|exchange| exchange.map(|exchange| Item::Exchange(Box::new(exchange))))
                }
            };
            match item.map_err(Failure::Read)? {
                Some(item) => each(item, read).map_err(Failure::Each)?,
                None => return Ok(()),
            }
        }
    }
}

/// A file's name for messages.
pub(crate) fn name(path: &Path) -> String {
    if path == Path::new("-") { "standard input".into() } else { path.display().to_string() }
}

/// A file's size, where it has one.
pub(crate) fn size(path: &Path) -> Option<u64> {
    fs::metadata(path).ok().filter(fs::Metadata::is_file).map(|metadata| metadata.len())
}

/// What went wrong so far: each is said when it happens but the last, which is what the command ends with.
#[derive(Debug, Default)]
pub(crate) struct Failures {
    last: Option<anyhow::Error>,
}

impl Failures {
    pub(crate) fn add(&mut self, error: anyhow::Error) {
        if let Some(before) = self.last.replace(error) {
            say(&format!("{before:#}"));
        }
    }

    pub(crate) fn result(self) -> anyhow::Result<()> {
        self.last.map_or(Ok(()), Err)
    }
}

/// Says something on standard error. One that is closed leaves the exit code to tell.
pub(crate) fn say(text: &str) {
    let _ = io::Write::write_all(&mut io::stderr().lock(), format!("gatespan: {text}\n").as_bytes());
}
