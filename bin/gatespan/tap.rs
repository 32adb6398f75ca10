//! `gatespan tap FROM TO`: a bridge that records what passes, and shows it. FastCGI to FastCGI is relayed byte for byte; everything else goes
//! through the bridge, and is recorded as FastCGI would have carried it. This file is the command line, and the life of what it starts.

mod relay;
mod waist;
mod recorder;
mod output;
mod following;
mod lines;
mod view;

use std::io::{self, IsTerminal};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::{Args, Parser, ValueEnum};
use gatespan::address::{Address, Endpoint};
use gatespan::application::AnyApplication;
use gatespan::gateway::{Event, RunError, run_connections_at};
use gatespan::recording::mask::Shown;

use self::lines::Lines;
use self::output::{Output, Rotation};
use self::recorder::{Recorder, WATCHED_PIECES, Watched};
use self::relay::Relay;
use self::view::{About, Screen};
use crate::bridge::{self, Listening, UsageError, say};
use crate::logging::Form;
use crate::values;

/// See and record what passes between a web server and an application
///
/// Put it between the two: it takes requests in at FROM and has them answered by TO, both as gatespan bridge has them, and keeps what passes in a
/// file, which gatespan decode and gatespan convert read. On a terminal it shows the requests that run and those that are over;
/// elsewhere it prints a line for each.
///
/// From FastCGI to a FastCGI server, bytes are passed on exactly as they come, well-formed or not, in both directions, and what breaks the
/// specification is shown. Anything else goes through the bridge, whose own options may follow --, and each request is recorded as FastCGI
/// would have carried it.
///
/// Cookies, authorization and bodies are not kept unless --show names them: a mark stands for them, and how many bytes they were. What is secret
/// elsewhere, such as in a query, is kept.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Arguments {
    /// Where requests come in: fastcgi: or http:, as for gatespan bridge
    #[arg(value_name = "FROM", value_parser = bridge::parse_from)]
    from: Address,
    /// What answers them, as for gatespan bridge
    #[arg(value_name = "TO", value_parser = bridge::parse_to)]
    to: Address,
    /// Options of gatespan bridge, for what is not relayed from FastCGI to FastCGI; with any, nothing is
    #[arg(value_name = "OPTIONS OF BRIDGE", last = true)]
    bridge: Vec<String>,
    #[command(flatten)]
    recording: Recording,
    #[command(flatten)]
    showing: Showing,
    #[command(flatten)]
    listening: Listening,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "The recording")]
struct Recording {
    /// The file, which is made for nobody else to read (mode 600) and added to where it is there; - is standard output
    #[arg(short, long, value_name = "FILE", default_value = "gatespan.gsr")]
    output: PathBuf,
    /// Begin another file before this one is longer: FILE becomes FILE.1, FILE.1 becomes FILE.2
    #[arg(long, value_name = "SIZE", default_value = "256M", value_parser = values::size)]
    rotate: u64,
    /// How many such files are kept beside FILE; what is older is deleted
    #[arg(long, value_name = "NUMBER", default_value_t = 3)]
    keep: u32,
    /// Keep and show this too, with commas between them, which is else masked
    #[arg(long, value_name = "WHAT", value_enum, value_delimiter = ',')]
    show: Vec<Secret>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What is shown")]
struct Showing {
    /// Print lines on a terminal too, one for each request that is over
    #[arg(long)]
    no_view: bool,
    /// Print a JSON object for each request that is over
    #[arg(long)]
    json: bool,
    /// Neither show nor print anything of requests
    #[arg(long, conflicts_with = "json")]
    silent: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Secret {
    /// Cookie and Set-Cookie
    Cookies,
    /// Authorization, passwords, tokens and keys
    Authorization,
    /// The bodies of requests and responses
    Bodies,
    /// All of them
    All,
}

const EXAMPLES: &str = "\
Examples:
  gatespan tap fastcgi:/run/tap.sock fastcgi:/run/php/php-fpm.sock     between nginx and PHP:
                                       fastcgi_pass unix:/run/tap.sock; in nginx's configuration
  gatespan tap fastcgi://127.0.0.1:9001 fastcgi://127.0.0.1:9000 -o app.gsr --rotate 100M --keep 9
  gatespan tap fastcgi:/run/tap.sock fastcgi:/run/app.sock --show cookies,bodies
  gatespan tap fastcgi:/run/tap.sock fastcgi:/run/app.sock -o - | gatespan decode -
  gatespan tap http://127.0.0.1:8080 cgi:cgi-bin/ --json
  gatespan tap http://127.0.0.1:8080 fastcgi:/run/php/php-fpm.sock -- --root site/

Keys:
  ↑ ↓ select  Enter open a request  / filter  Space hold what is shown  ? help  q end

Signals:
  SIGTERM, SIGINT  running requests are finished, within --shutdown-timeout; a second ends them

Exit codes:
  0    ended by a signal
  1    not served, or not recorded from the beginning, and standard error says why
  2    the command line could not be understood
  143  ended by a second SIGTERM (130 by SIGINT)

If the file can't be written later, the tap goes on, says so, and the recording has gaps.";

/// How long the last of a recording may take to be written when a second signal ends the process.
const FINISHED_WITHIN: Duration = Duration::from_secs(1);

/// The bridge's command line, where only that is read.
#[derive(Debug, Parser)]
#[command(name = "gatespan bridge", no_binary_name = true)]
struct BridgeWords {
    #[command(flatten)]
    arguments: bridge::Arguments,
}

pub(crate) fn run(arguments: &Arguments, form: Form) -> anyhow::Result<()> {
    let bridge = arguments.bridge()?;
    let to_standard_output = arguments.recording.output.as_os_str() == "-";
    let (output, last) = Output::open(&arguments.recording.output, arguments.recording.rotation())
        .with_context(|| format!("{}: the recording can't be written", arguments.recording.output.display()))?;
    let screen = Arc::new(Screen::default());
    let watcher = match arguments.showing.way(to_standard_output) {
        Way::Nothing => None,
        Way::Lines(lines) => Some(watcher(move |watched| lines::write(&watched, lines))?),
        Way::View => {
            let (screen, about) = (screen.clone(), arguments.about());
            Some(watcher(move |watched| view::run(&watched, &screen, about))?)
        }
    };
    let (sender, watcher) = watcher.unzip();
    let shown = arguments.recording.shown();
    let (recorder, writer) =
        Recorder::start(Some(output), sender, shown, last).context("the thread that writes could not be started")?;
    let writer = Finish { recorder: recorder.clone(), writer };
    let ending = {
        let (recorder, screen) = (recorder.clone(), screen.clone());
        move || {
            recorder.finish();
            screen.give_back();
            // The writer is seen to have ended when nothing more is in the buffer.
            let until = Instant::now() + FINISHED_WITHIN;
            while !recorder.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    };
    let served = match (&arguments.from, &arguments.to, arguments.bridge.is_empty()) {
        (Address::FastCgi(from), Address::FastCgi(to), true) => arguments.relay(from, to, &recorder, form, ending),
        _ => {
            let to = arguments.to.to_string();
            let around = |application| {
                AnyApplication::new(waist::Tapped {
                    application: Arc::new(application),
                    recorder: recorder.clone(),
                    to,
                })
            };
            bridge::run_around(&bridge, form, around, ending)
        }
    };
    drop(writer);
    if let Some(watcher) = watcher {
        // One that panicked has said so.
        let _ = watcher.join();
    }
    screen.give_back();
    served
}

/// Has the recording written to its end, on every way out.
struct Finish {
    recorder: Arc<Recorder>,
    writer: JoinHandle<()>,
}

impl Drop for Finish {
    fn drop(&mut self) {
        self.recorder.finish();
        let until = Instant::now() + Duration::from_secs(10);
        // A disk or pipe that takes nothing is not waited for without end.
        while !self.writer.is_finished() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

type Watcher = (std::sync::mpsc::SyncSender<Watched>, JoinHandle<()>);

/// A thread that is given what is recorded.
fn watcher(watch: impl FnOnce(Receiver<Watched>) + Send + 'static) -> anyhow::Result<Watcher> {
    let (sender, receiver) = sync_channel(WATCHED_PIECES);
    let thread = std::thread::Builder::new()
        .name("gatespan-tap-view".into())
        .spawn(move || watch(receiver))
        .context("the thread that shows what passes could not be started")?;
    Ok((sender, thread))
}

/// How requests are shown.
enum Way {
    View,
    Lines(Lines),
    Nothing,
}

impl Showing {
    fn way(&self, output_is_taken: bool) -> Way {
        match () {
            () if self.silent || output_is_taken => Way::Nothing,
            () if self.json => Way::Lines(Lines::Json),
            () if self.no_view || !io::stdout().is_terminal() || !io::stdin().is_terminal() => Way::Lines(Lines::Text),
            () => Way::View,
        }
    }
}

impl Recording {
    fn rotation(&self) -> Rotation {
        Rotation { size: self.rotate, keep: self.keep }
    }

    fn shown(&self) -> Shown {
        let is_shown = |secret| self.show.contains(&secret) || self.show.contains(&Secret::All);
        Shown {
            cookies: is_shown(Secret::Cookies),
            authorization: is_shown(Secret::Authorization),
            bodies: is_shown(Secret::Bodies),
        }
    }
}

impl Arguments {
    /// The same as a bridge, and whether that can be.
    fn bridge(&self) -> anyhow::Result<bridge::Arguments> {
        if self.from == Address::CgiProcess {
            let message = "expected fastcgi: or http: FROM, got \"cgi:\": a CGI script has one request, and its standard output is the answer; put the \
                           tap behind it: gatespan bridge cgi: fastcgi:/run/tap.sock, and gatespan tap fastcgi:/run/tap.sock TO";
            return Err(UsageError(message.into()).into());
        }
        if self.showing.json && self.recording.output.as_os_str() == "-" {
            return Err(UsageError("--json and -o - both write to standard output".into()).into());
        }
        let ends = [self.from.to_string(), self.to.to_string()];
        let parse = |options: &[String]| {
            BridgeWords::try_parse_from(ends.iter().chain(options)).map_err(|error| {
                // `-- --help` asks what may stand there.
                if !error.use_stderr() {
                    error.exit();
                }
                let message = error.to_string();
                UsageError(message.strip_prefix("error: ").unwrap_or(&message).trim_end().into())
            })
        };
        let mut bridge = parse(&self.bridge)?.arguments;
        // Both commands have these, and what is said here counts.
        if format!("{:?}", bridge.listening) != format!("{:?}", parse(&[])?.arguments.listening) {
            return Err(
                UsageError("options about listening, such as --socket-mode, are to stand before --".into()).into()
            );
        }
        bridge.listening = self.listening.clone();
        bridge.check()?;
        Ok(bridge)
    }

    fn about(&self) -> About {
        About {
            from: self.from.to_string(),
            to: self.to.to_string(),
            file: self.recording.output.display().to_string(),
        }
    }

    fn relay(
        &self,
        from: &Endpoint,
        to: &Endpoint,
        recorder: &Arc<Recorder>,
        form: Form,
        ending: impl Fn() + Send + 'static,
    ) -> anyhow::Result<()> {
        let options = self.listening.options();
        let name = self.to.to_string();
        let relay =
            Relay { to: to.clone(), name: name.clone(), config: options.fastcgi.clone(), recorder: recorder.clone() };
        let relay = Arc::new(relay);
        let tell = move |event: Event<'_>| match event {
            Event::Listening(addresses) => {
                for address in addresses {
                    say(form, format_args!("serving {name} at {address}"));
                }
            }
            Event::Stopping => say(form, "stopping when the running requests are finished; another signal ends them"),
            Event::Ending => ending(),
            _ => {}
        };
        let serve = |listener, stop| relay::serve(relay.clone(), listener, stop);
        run_connections_at(from, &options, serve, tell).map_err(|error| match error {
            RunError::Arguments(message) => UsageError(message).into(),
            error => error.into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn arguments(words: &[&str]) -> Arguments {
        let words = ["gatespan", "tap"].iter().chain(words);
        match crate::Cli::try_parse_from(words).expect("understood").command {
            crate::Command::Tap(arguments) => *arguments,
            _ => unreachable!("the command is tap"),
        }
    }

    #[test]
    fn what_is_shown_is_named() {
        let shown = |words: &[&str]| arguments(&[&["fastcgi:/a", "fastcgi:/b"], words].concat()).recording.shown();
        assert_eq!(shown(&[]), Shown::default());
        assert_eq!(shown(&["--show", "cookies,bodies"]), Shown { authorization: false, ..Shown::ALL });
        assert_eq!(shown(&["--show", "all"]), Shown::ALL);
    }

    #[test]
    fn options_of_the_bridge_are_checked_by_it() {
        let bridge = |words: &[&str]| arguments(words).bridge().map_err(|error| error.to_string());
        let understood =
            bridge(&["http://127.0.0.1:0", "fastcgi:/b", "--threads", "1", "--", "--root", "site/"]).unwrap();
        assert_eq!(understood.listening.threads, Some(1));
        for (words, part) in [
            (&["cgi:", "fastcgi:/b"][..], "expected fastcgi: or http: FROM"),
            (&["fastcgi:/a", "fastcgi:/b", "--", "--no-such-option"], "--no-such-option"),
            (&["fastcgi:/a", "fastcgi:/b", "--", "--threads", "2"], "are to stand before --"),
            (&["fastcgi:/a", "fastcgi:/b", "--max-body", "1M"], "--max-body is for http:"),
            (&["fastcgi:/a", "fastcgi:/b", "--json", "-o", "-"], "both write to standard output"),
        ] {
            let message = bridge(words).unwrap_err();
            assert!(message.contains(part), "{message}");
        }
    }
}
