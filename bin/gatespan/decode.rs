//! `gatespan decode`: what passed, record by record, as a table for people or lines for programs.

mod table;

use std::io::{self, BufWriter, IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::Context;
use clap::{Args, ValueEnum};
use gatespan::recording::{Checker, Describer, Entry, Finding, Spool, Summaries, Summary};

use crate::recordings::{Failures, FromForm, Item, Numbering, OneWay, Reading, say};
use table::Table;

/// Show what passed between web servers and applications, record by record
///
/// Each record is a line: where it stands, when it passed, on which connection and for which request, and what it means.
/// What breaks the specification is marked with its clause, and each request is summed up when it ends.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// The recordings: FastCGI records, lines of JSON, HTTP messages, captures, recordings of gatespan tap; - or nothing is standard input
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
    /// The form of the files [default: each is recognised by its first bytes]
    #[arg(long, value_name = "FORM", value_enum)]
    from: Option<FromForm>,
    /// All FastCGI records of the files pass to this end [default: known by their types]
    #[arg(long = "direction", value_name = "TO", value_enum)]
    direction: Option<OneWay>,
    /// In captures, take the connections to this TCP port, whatever passes on them; may be repeated [default: those that carry FastCGI]
    #[arg(long = "port", value_name = "PORT")]
    ports: Vec<u16>,
    /// Show this request only: the first that began is 1, as in the column REQ
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    request: Option<u64>,
    /// Show the bytes of each record, too
    #[arg(long)]
    hex: bool,
    /// Go on as the file grows, until Ctrl-C
    #[arg(long)]
    follow: bool,
    /// Print a JSON object for each record and each request: the lines of convert --to json, with what is found and meant
    #[arg(long)]
    json: bool,
    /// Fail when anything breaks the specification
    #[arg(long)]
    strict: bool,
    /// Whether the table is in colour [default: on a terminal, unless NO_COLOR is set]
    #[arg(long, value_name = "WHEN", value_enum, default_value_t = Colour::Auto, hide_default_value = true)]
    color: Colour,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Colour {
    Auto,
    Always,
    Never,
}

const EXAMPLES: &str = "\
Examples:
  gatespan decode dump.bin          a table of the records in a file
  tcpdump -i lo -w - port 9000 | gatespan decode --follow
                                    watch what passes to and from php-fpm
  gatespan decode --request 3 --hex capture.pcap
                                    one request of a capture, with its bytes
  gatespan decode --json gatespan.rec | jq 'select(.event == \"summary\" and .status >= 500)'
                                    the requests that failed

Exit codes:
  0  all was read
  1  a file could not be read, or not to its end, and standard error says where; with --strict, something was found
  2  the command line could not be understood";

pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let follow = arguments.follow.then(interrupted).transpose()?;
    let reading = Reading {
        from: arguments.from,
        direction: arguments.direction,
        ports: arguments.ports.clone(),
        spool: Spool::default(),
        follow,
    };
    let standard_input = [PathBuf::from("-")];
    let files = if arguments.files.is_empty() { &standard_input[..] } else { &arguments.files };
    let mut decoder = Decoder::new(arguments);
    let (mut numbering, mut failures) = (Numbering::default(), Failures::default());
    for file in files {
        let read = reading.read(file, &mut numbering, &mut |item, _| decoder.item(&item));
        match read {
            Ok(note) => note.iter().for_each(|note| say(note)),
            // Nobody reads what is printed any more.
            Err(error) if crate::is_broken_pipe(&error) => return Err(error),
            Err(error) => failures.add(error),
        }
    }
    decoder.finish()?;
    failures.result()?;
    match decoder.findings {
        0 => Ok(()),
        findings if arguments.strict => {
            anyhow::bail!("expected nothing that breaks the specification, got {findings} findings")
        }
        _ => Ok(()),
    }
}

/// Set once Ctrl-C was pressed, which then no longer ends the process.
fn interrupted() -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let set = interrupted.clone();
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_io().build().context("no runtime for signals")?;
    let signal = runtime.block_on(async { tokio::signal::unix::signal(tokio::signal::unix::SignalKind::interrupt()) });
    let mut signal = signal.context("Ctrl-C can't be waited for")?;
    thread::spawn(move || {
        runtime.block_on(signal.recv());
        set.store(true, Ordering::Relaxed);
    });
    Ok(interrupted)
}

struct Decoder {
    output: BufWriter<Box<dyn Write>>,
    form: Form,
    only: Option<u64>,
    checker: Checker,
    describer: Describer,
    summaries: Summaries,
    records: u64,
    findings: u64,
    /// Somebody looks at it as it comes.
    is_live: bool,
}

enum Form {
    Table(Table),
    Json(gatespan::recording::form::json::Writer),
}

impl Decoder {
    fn new(arguments: &Arguments) -> Self {
        let is_terminal = io::stdout().is_terminal();
        let is_coloured = match arguments.color {
            Colour::Always => true,
            Colour::Never => false,
            // no-color.org: any value but an empty one.
            Colour::Auto => is_terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
        };
        let form = match arguments.json {
            true => Form::Json(Default::default()),
            false => Form::Table(Table::new(is_coloured, width(is_terminal), arguments.hex)),
        };
        Self {
            output: BufWriter::with_capacity(64 * 1024, Box::new(io::stdout())),
            form,
            only: arguments.request,
            checker: Checker::default(),
            describer: Describer::default(),
            summaries: Summaries::default(),
            records: 0,
            findings: 0,
            is_live: is_terminal || arguments.follow,
        }
    }

    fn item(&mut self, item: &Item) -> anyhow::Result<()> {
        match item {
            Item::Entry(entry) => self.entry(entry)?,
            Item::Exchange(exchange) => {
                for entry in exchange.records() {
                    self.entry(&entry?)?;
                }
            }
        }
        if self.is_live {
            self.output.flush()?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> anyhow::Result<()> {
        let findings = self.checker.check(entry);
        let meaning = self.describer.describe(entry);
        let (request, over) = self.summaries.receive(entry, findings.len());
        self.records += 1;
        self.findings += findings.len() as u64;
        if self.only.is_none_or(|only| request == Some(only)) {
            self.show(entry, request, &meaning, &findings)?;
        }
        for summary in over {
            self.sum_up(&summary)?;
        }
        Ok(())
    }

    fn show(&mut self, entry: &Entry, request: Option<u64>, meaning: &str, findings: &[Finding]) -> anyhow::Result<()> {
        let mut out = Vec::new();
        match &mut self.form {
            Form::Table(table) => table.entry(entry, request, meaning, findings, &mut out),
            Form::Json(writer) => writer.write_with(entry, &mut out, |out| {
                put_field("offset", &entry.offset.into(), out);
                if let Some(request) = request {
                    put_field("request", &request.into(), out);
                }
                put_field("meaning", &meaning.into(), out);
                if !findings.is_empty() {
                    let list = findings.iter().map(
                        |finding| serde_json::json!({ "clause": finding.clause(), "message": finding.to_string() }),
                    );
                    put_field("findings", &list.collect(), out);
                }
            }),
        }
        self.output.write_all(&out)?;
        Ok(())
    }

    fn sum_up(&mut self, summary: &Summary) -> anyhow::Result<()> {
        if self.only.is_some_and(|only| summary.number != only) {
            return Ok(());
        }
        let mut out = Vec::new();
        match &self.form {
            Form::Table(table) => table.summary(summary, &mut out),
            Form::Json(_) => {
                serde_json::to_writer(&mut out, &object(summary))?;
                // Lines of the form begin with their version, by which it is recognised.
                out.splice(..1, *b"{\"v\":1,");
                out.push(b'\n');
            }
        }
        self.output.write_all(&out)?;
        Ok(())
    }

    fn finish(&mut self) -> anyhow::Result<()> {
        for summary in self.summaries.end() {
            self.sum_up(&summary)?;
        }
        // Nothing in, nothing out.
        if let Form::Table(table) = &self.form
            && self.records > 0
        {
            let mut out = Vec::new();
            table.total(self.records, self.summaries.begun(), self.findings, &mut out);
            self.output.write_all(&out)?;
        }
        self.output.flush()?;
        Ok(())
    }
}

fn put_field(name: &str, value: &serde_json::Value, out: &mut Vec<u8>) {
    // Writing to memory does not fail.
    let _ = write!(out, ",\"{name}\":{value}");
}

fn object(summary: &Summary) -> serde_json::Value {
    let milliseconds = |nanoseconds: Option<u64>| nanoseconds.map(|nanoseconds| nanoseconds as f64 / 1e6);
    serde_json::json!({
        "event": "summary",
        "connection": summary.connection.0,
        "request": summary.number,
        "id": summary.id.0,
        "role": gatespan::recording::role_name(summary.role),
        "method": summary.method,
        "target": summary.target,
        "status": summary.status,
        "stdin": summary.stdin,
        "data": summary.data,
        "stdout": summary.stdout,
        "stderr": summary.stderr,
        "application_status": summary.end.map(|end| end.application_status),
        "protocol_status": summary.end.map(|end| gatespan::recording::status_name(end.protocol_status)),
        "aborted": summary.is_aborted,
        "complete": summary.end.is_some(),
        "first_byte_ms": milliseconds(summary.to_first_byte()),
        "duration_ms": milliseconds(summary.duration()),
        "findings": summary.findings,
    })
}

/// How many characters fit in a line; `None` where lines may be of any length.
fn width(is_terminal: bool) -> Option<usize> {
    let size = is_terminal.then(|| rustix::termios::tcgetwinsize(io::stdout()).ok()).flatten()?;
    let width = usize::from(size.ws_col);
    // In a narrow one a record has two lines, so that there is room for what it means.
    (width >= 40).then_some(if width < 130 { 2 * width } else { width })
}
