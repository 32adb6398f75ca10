//! The options of scripts, and the script host's settings that are made of them.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use gatespan::upstream::cgi;
use gatespan::upstream::cgi::spawn::Identity;

use super::set;
use crate::bridge::Arguments;
use crate::bridge::roots::{self, Root};
use crate::values;

#[derive(Debug, Args)]
#[command(next_help_heading = "Scripts (cgi:, fastcgi:)")]
pub(crate) struct Scripts {
    /// For cgi: a further folder that scripts may lie in, after TO's; may be repeated. For fastcgi: the folder of a site, whose scripts go to TO (where
    /// TO is none, to the FastCGI servers of routes) and whose files are sent. With a --route's prefix before it, for what is sent there alone; /=FOLDER is
    /// TO's
    #[arg(long = "root", value_name = "[/PREFIX=]FOLDER", value_parser = roots::parse)]
    pub(crate) roots: Vec<Root>,
    /// What answers for its folder. May be repeated; the first that is there counts [default: index.php and index.html for a site, index.html for
    /// file:, none for cgi:]
    #[arg(long, value_name = "NAME")]
    pub(crate) index: Vec<OsString>,
    /// Run files of this ending with a program, whether or not they are executable. May be repeated
    #[arg(long = "interpreter", value_name = ".ENDING=PROGRAM", value_parser = values::interpreter)]
    pub(crate) interpreters: Vec<(OsString, PathBuf)>,
    /// Set a variable for scripts and programs. May be repeated
    #[arg(long, value_name = "NAME=VALUE", value_parser = values::variable)]
    pub(crate) env: Vec<(OsString, OsString)>,
    /// Let a variable through that steers loaders or interpreters, from the web server or from this process. May be repeated; NAME* is all that begin so
    #[arg(long, value_name = "NAME")]
    pub(crate) pass_env: Vec<OsString>,
    /// Run scripts as this user, by name or number (root only) [default: as this process]
    #[arg(long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// Run scripts as this group [default: the user's]
    #[arg(long, value_name = "GROUP", requires = "user")]
    pub(crate) group: Option<String>,
    /// Make arguments of a query without "=" (RFC 3875 4.4), never one that begins with "-"
    #[arg(long)]
    pub(crate) isindex: bool,
    /// Send what scripts write to standard error to the web server's log as well
    #[arg(short = 'f', long)]
    pub(crate) stderr_to_server: bool,
    /// Say on error pages why a request failed, and what mends it: for nobody but you to see
    #[arg(long)]
    pub(crate) debug: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Request bodies of unknown length (cgi:, fastcgi:)")]
pub(crate) struct Bodies {
    /// What becomes of one [default: spool]
    #[arg(long, value_name = "HOW", value_enum)]
    pub(crate) request_body: Option<RequestBody>,
    /// The longest that is spooled; longer ones are 413 [default: 1G]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) spool_limit: Option<u64>,
    /// How much of each is kept in memory before it goes to a file without a name, in TMPDIR or /tmp [default: 64K for cgi:, 256K for fastcgi:]
    #[arg(long, value_name = "SIZE", value_parser = values::memory)]
    pub(crate) spool_memory: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RequestBody {
    /// Read it first, so that the application is told CONTENT_LENGTH
    Spool,
    /// Pass it on as it comes, without CONTENT_LENGTH; the application reads to the end of its input
    Stream,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Time limits")]
pub(crate) struct Times {
    /// How long a script or server may take to the end of its response head; then 504 [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) head_timeout: Option<Duration>,
    /// How long it may send nothing after that [default: 60s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) read_timeout: Option<Duration>,
    /// How long it may take in all [default: no limit]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) timeout: Option<Duration>,
    /// How long a script or program and what it started have between SIGTERM and SIGKILL [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) kill_grace: Option<Duration>,
    /// End processes that a script leaves running when it ends
    #[arg(long)]
    pub(crate) kill_leftovers: bool,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "How many at once")]
pub(crate) struct Numbers {
    /// Scripts that run at once, for each TO [default: 64]
    #[arg(short, long, value_name = "NUMBER", value_parser = values::at_least_one)]
    pub(crate) concurrent: Option<usize>,
    /// Processes of one script that run at once [default: no further limit]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    pub(crate) concurrent_per_script: Option<usize>,
    /// Requests that wait for their turn; one more is 503 [default: 256 for cgi:, 1024 for servers]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) queue: Option<usize>,
    /// How long a request waits before it is 503 [default: 10s, 30s for fastcgi:]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) queue_wait: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "What a script may use up (setrlimit)")]
pub(crate) struct ScriptLimits {
    /// Processor time, in whole seconds [default: as this process]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) limit_cpu: Option<Duration>,
    /// Address space [default: as this process]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) limit_memory: Option<u64>,
    /// Open files [default: as this process]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) limit_files: Option<u64>,
    /// Processes of the script's user, all of them together [default: as this process]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) limit_processes: Option<u64>,
    /// The longest file that it may write [default: as this process]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) limit_file_size: Option<u64>,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Files that are sent by name")]
pub(crate) struct Files {
    /// Serve X-Sendfile from this folder; else the header passes on. May be repeated
    #[arg(long = "send-file-root", value_name = "FOLDER")]
    pub(crate) send_file_roots: Vec<PathBuf>,
    /// Serve X-Accel-Redirect below this path from a folder; else the header passes on. May be repeated
    #[arg(long = "accel-root", value_name = "/PREFIX/=FOLDER", value_parser = values::accel_root)]
    pub(crate) accel_roots: Vec<(String, PathBuf)>,
}

impl Arguments {
    pub(crate) fn cgi_config(&self) -> anyhow::Result<cgi::Config> {
        let mut config = cgi::Config::default();
        let Scripts { roots: _, index, interpreters, env, pass_env, user, group, isindex, stderr_to_server, debug } =
            &self.scripts;
        config.index.clone_from(index);
        config.interpreters.clone_from(interpreters);
        config.environment.clone_from(env);
        config.pass_environment.clone_from(pass_env);
        config.identity = user.as_deref().map(|user| identity(user, group.as_deref())).transpose()?;
        config.isindex = *isindex;
        config.stderr_to_web_server = *stderr_to_server;
        config.debug = *debug;
        let Bodies { request_body, spool_limit, spool_memory } = self.bodies;
        if let Some(how) = request_body {
            config.request_body = match how {
                RequestBody::Spool => cgi::RequestBody::Spool,
                RequestBody::Stream => cgi::RequestBody::Stream,
            };
        }
        set(&mut config.spool_limit, spool_limit);
        set(&mut config.spool_memory, spool_memory);
        let Times { head_timeout, read_timeout, timeout, kill_grace, kill_leftovers } = self.times;
        set(&mut config.head_timeout, head_timeout);
        set(&mut config.read_timeout, read_timeout);
        set(&mut config.kill_grace, kill_grace);
        (config.timeout, config.kill_leftovers) = (timeout, kill_leftovers);
        let Numbers { concurrent, concurrent_per_script, queue, queue_wait } = self.numbers;
        set(&mut config.concurrent, concurrent);
        set(&mut config.queue, queue);
        set(&mut config.queue_wait, queue_wait);
        config.concurrent_per_script = concurrent_per_script;
        let ScriptLimits { limit_cpu, limit_memory, limit_files, limit_processes, limit_file_size } = self.limits;
        let limits = &mut config.limits;
        // A part of a second is a whole one: none at all would end every script at once.
        limits.cpu_time = limit_cpu.map(|time| time.as_secs() + u64::from(time.subsec_nanos() > 0));
        (limits.memory, limits.open_files, limits.processes) = (limit_memory, limit_files, limit_processes);
        limits.file_size = limit_file_size;
        Ok(config)
    }
}

/// Whom scripts run as. Who is not root can be nobody else, which is better said now than at each request.
fn identity(user: &str, group: Option<&str>) -> anyhow::Result<Identity> {
    let identity = Identity::of_names(user, group)
        .with_context(|| format!("scripts can't run as user {user}, group {}", group.unwrap_or("of the user")))?;
    let own = rustix::process::geteuid();
    if !own.is_root() {
        anyhow::bail!(
            "expected to be started by root, since --user is given, and was started by user {own}",
            own = own.as_raw()
        );
    }
    Ok(identity)
}
