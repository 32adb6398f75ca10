//! `gatespan convert`: recordings from one form into another.

mod output;
mod progress;

use std::path::{Path, PathBuf};

use anyhow::bail;
use clap::{Args, ValueEnum};
use gatespan::recording::form::{self, ExchangeWriter};
use gatespan::recording::{Checker, Entry, Exchange, Exchanges, Finding, Passed, Spool};

use crate::recordings::{Failures, FromForm, Item, Numbering, OneWay, Reading, name, say, size};
use output::Output;
use progress::Progress;

/// Convert what passed between web servers and applications from one form into another
///
/// Between the forms fastcgi and json nothing is lost, record by record. The other forms hold requests with their answers;
/// docs/recording.md lists what each of them can't hold.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The recordings; - or nothing is standard input. A folder is one that --to cgi has written
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The form that is written
    #[arg(long, value_name = "FORM", value_enum)]
    to: ToForm,
    /// The form of the files [default: each is recognised by its first bytes]
    #[arg(long, value_name = "FORM", value_enum)]
    from: Option<FromForm>,
    /// Where it is written: a file, or the folder for cgi, which must be empty or not there [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// All FastCGI records of the files pass to this end [default: known by their types]
    #[arg(long = "direction", value_name = "TO", value_enum)]
    direction: Option<OneWay>,
    /// In captures, take the connections to this TCP port, whatever passes on them; may be repeated [default: those that carry FastCGI]
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<u16>,
    /// Convert what passed on this connection only: the first that is seen is 1
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    connection: Option<u64>,
    /// Up to how many bytes of bodies are held in memory; more lie in a temporary file
    #[arg(long, value_name = "BYTES", default_value_t = gatespan::recording::DEFAULT_SPOOL_MEMORY)]
    memory: usize,
}

/// A form that can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum ToForm {
    /// Records as they stand on the wire
    Fastcgi,
    /// A line of JSON for each record
    Json,
    /// A folder for each request: environment, input, output, and a script that runs the program with them
    Cgi,
    /// Messages of HTTP/1.1: request, answer, request, answer
    Http,
    /// A command line for each request
    Curl,
    /// An archive that browsers' tools open
    Har,
}

const EXAMPLES: &str = "\
Examples:
  gatespan convert --to json capture.pcap > records.jsonl
                                    the FastCGI in a capture, a record a line
  gatespan convert --to fastcgi records.jsonl > records.bin
                                    the same bytes again
  gatespan convert --to cgi -o requests records.jsonl
                                    requests/000001/run runs the first request's program with its input
  gatespan convert --to har gatespan.rec -o tap.har
                                    to be opened in a browser's network tool
  gatespan convert --to curl gatespan.rec | sh
                                    make the recorded requests again

Exit codes:
  0  all was converted
  1  a file could not be read or written, or is broken; standard error says where, and what stands before is converted
  2  the command line could not be understood";

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let reading = Reading {
        from: arguments.from,
        direction: arguments.direction,
        ports: arguments.ports.clone(),
        spool: Spool::new(arguments.memory, None),
        follow: None,
    };
    let standard_input = [PathBuf::from("-")];
    let files = if arguments.files.is_empty() { &standard_input[..] } else { &arguments.files };
    let output = Output::open(arguments.output.as_deref(), arguments.to, files)?;
    let is_shown = arguments.output.is_some() || !std::io::IsTerminal::is_terminal(&std::io::stdout());
    let mut conversion = Conversion::new(arguments.to, output, &reading.spool);
    let (mut numbering, mut failures) = (Numbering::default(), Failures::default());
    for file in files {
        let mut progress = Progress::new(name(file), size(file), is_shown);
        let mut damage = Damage::default();
        let read = reading.read(file, &mut numbering, &mut |item, read| {
            progress.at(read);
            let connection = match &item {
                Item::Entry(entry) => entry.connection,
                Item::Exchange(exchange) => exchange.connection,
            };
            if arguments.connection.is_some_and(|only| only != connection.0) {
                return Ok(());
            }
            conversion.item(item, file, &mut damage)
        });
        progress.finish();
        let read = read.and_then(|note| damage.result(file).map(|()| note));
        match read {
            Ok(note) => note.iter().for_each(|note| say(note)),
            Err(error) if crate::is_broken_pipe(&error) => return Err(error),
            Err(error) => failures.add(error),
        }
        // Whatever comes in the next file is on other connections.
        conversion.end_file(file)?;
    }
    conversion.finish()?;
    failures.result()
}

struct Conversion {
    output: Output,
    writer: Writer,
    exchanges: Exchanges,
    /// How many exchanges were written.
    count: u64,
    /// How many notes there were.
    notes: u64,
    /// How many exchanges have bytes that were masked.
    masked: u64,
    /// The first connection, and whether there was another.
    connections: (Option<u64>, bool),
}

enum Writer {
    Fastcgi,
    Json(form::json::Writer),
    Exchanges(Box<dyn ExchangeWriter>),
    Folders,
}

impl Conversion {
    fn new(to: ToForm, output: Output, spool: &Spool) -> Self {
        let writer = match to {
            ToForm::Fastcgi => Writer::Fastcgi,
            ToForm::Json => Writer::Json(Default::default()),
            ToForm::Http => Writer::Exchanges(Box::<form::http::Writer>::default()),
            ToForm::Curl => Writer::Exchanges(Box::<form::curl::Writer>::default()),
            ToForm::Har => Writer::Exchanges(Box::<form::har::Writer>::default()),
            ToForm::Cgi => Writer::Folders,
        };
        Self {
            output,
            writer,
            exchanges: Exchanges::new(spool.clone()),
            count: 0,
            notes: 0,
            masked: 0,
            connections: (None, false),
        }
    }

    fn item(&mut self, item: Item, file: &Path, damage: &mut Damage) -> anyhow::Result<()> {
        match (item, &self.writer) {
            (Item::Entry(entry), Writer::Fastcgi | Writer::Json(_)) => {
                damage.look(&entry, file);
                self.entry(&entry)
            }
            (Item::Entry(entry), Writer::Exchanges(_) | Writer::Folders) => {
                damage.look(&entry, file);
                self.exchanges.receive(&entry)?;
                while let Some(exchange) = self.exchanges.next() {
                    self.exchange(&exchange, file)?;
                }
                Ok(())
            }
            (Item::Exchange(exchange), Writer::Fastcgi | Writer::Json(_)) => {
                exchange.records().try_for_each(|entry| self.entry(&entry?))
            }
            (Item::Exchange(exchange), Writer::Exchanges(_) | Writer::Folders) => self.exchange(&exchange, file),
        }
    }

    fn entry(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let mut bytes = Vec::new();
        match &mut self.writer {
            Writer::Json(writer) => writer.write(entry, &mut bytes),
            _ => {
                form::fastcgi::write(entry, &mut bytes);
                let first = *self.connections.0.get_or_insert(entry.connection.0);
                self.connections.1 |= first != entry.connection.0;
            }
        }
        self.output.write(&bytes)
    }

    fn exchange(&mut self, exchange: &Exchange, file: &Path) -> anyhow::Result<()> {
        self.count += 1;
        self.masked += u64::from(exchange.is_masked);
        let notes = match &mut self.writer {
            Writer::Exchanges(writer) => writer.write(exchange, self.output.stream()?)?,
            _ => {
                let folder = self.output.folder(self.count)?;
                form::cgi::write(exchange, &folder)
                    .map_err(|error| anyhow::Error::from(error).context(folder.display().to_string()))?
            }
        };
        for note in notes {
            self.notes += 1;
            if self.notes <= SAID {
                say(&format!("{}: request at byte {}: {note}", name(file), exchange.offset));
            }
        }
        Ok(())
    }

    fn end_file(&mut self, file: &Path) -> anyhow::Result<()> {
        self.exchanges.end()?;
        while let Some(exchange) = self.exchanges.next() {
            self.exchange(&exchange, file)?;
        }
        Ok(())
    }

    fn finish(mut self) -> anyhow::Result<()> {
        if let Writer::Exchanges(writer) = &mut self.writer {
            writer.finish(self.output.stream()?)?;
        }
        if self.connections.1 {
            say("the form fastcgi can't tell connections apart, and there were several: --connection picks one");
        }
        if self.notes > SAID {
            say(&format!("{} more such notes", self.notes - SAID));
        }
        if self.masked > 0 {
            let of = if self.masked == 1 { "1 request is".to_owned() } else { format!("{} requests are", self.masked) };
            say(&format!("{of} masked: in them a * stands for each byte that was not kept"));
        }
        self.output.finish()
    }
}

/// What is no record in a file: each place is said, up to a number of them.
#[derive(Debug, Default)]
struct Damage {
    checker: Option<Checker>,
    places: u64,
}

/// How many broken places of a file, and how many notes in all, are said one by one.
const SAID: u64 = 10;

impl Damage {
    fn look(&mut self, entry: &Entry, file: &Path) {
        let what = match &entry.passed {
            Passed::Garbage { .. } | Passed::Cut { .. } => {
                // What is wrong about these alone does not depend on others.
                let findings = self.checker.get_or_insert_default().check(entry);
                findings.first().map(Finding::to_string).unwrap_or_default()
            }
            Passed::Record { record, .. } if record.has_lost_bytes() => {
                let lost = record.piece().holes.iter().filter(|hole| !hole.is_masked).map(|hole| hole.len);
                format!("expected {} bytes of a record, which are missing", lost.sum::<usize>())
            }
            Passed::Gap { len: Some(len), .. } => format!("expected {len} bytes, which are missing"),
            Passed::Gap { len: None, .. } => "expected bytes that are missing".into(),
            _ => return,
        };
        self.places += 1;
        if self.places <= SAID {
            say(&format!("{}: at byte {}: {what}", name(file), entry.offset));
        }
    }

    fn result(&self, file: &Path) -> anyhow::Result<()> {
        match self.places {
            0 => Ok(()),
            1 => bail!("{}: 1 place is broken, and what could be read is converted", name(file)),
            places => bail!("{}: {places} places are broken, and what could be read is converted", name(file)),
        }
    }
}
