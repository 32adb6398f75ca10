//! The options of FROM, and the gateways' settings that are made of them.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use gatespan::Options;
use gatespan::application::{Errors, Log};
use gatespan::upstream::cgi::spawn::Identity;

use crate::bridge::Arguments;
use crate::values;

#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Listening")]
pub(crate) struct Listening {
    /// The mode of a Unix socket: whoever may write to it may send requests
    #[arg(long, value_name = "MODE", default_value = "660", value_parser = values::mode)]
    pub(crate) socket_mode: u32,
    /// The owner of a Unix socket, and its group [default: as this process]
    #[arg(long, value_name = "USER[:GROUP]", value_parser = parse_owner)]
    pub(crate) socket_owner: Option<(u32, Option<u32>)>,
    /// Take FastCGI connections over TCP from this address only; needed outside loopback. May be repeated [default: what FCGI_WEB_SERVER_ADDRS
    /// says]
    #[arg(long, value_name = "ADDRESS")]
    pub(crate) allow: Vec<IpAddr>,
    /// Take FastCGI connections to an abstract socket from this user too, besides root and the user of this process. May be repeated
    #[arg(long = "allow-user", value_name = "USER", value_parser = parse_user)]
    pub(crate) allow_users: Vec<u32>,
    /// Connections at once; further ones wait to be accepted
    #[arg(long, value_name = "NUMBER", default_value_t = 4096)]
    pub(crate) max_connections: usize,
    /// The longest request body of HTTP; longer ones are 413. Behind FastCGI and CGI the web server has such a limit [default: none]
    #[arg(long, value_name = "SIZE", value_parser = values::size)]
    pub(crate) max_body: Option<u64>,
    /// Threads that move bytes [default: one for each processor; where scripts are run four, and one more]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    pub(crate) threads: Option<usize>,
    /// How long running requests have to finish after SIGTERM or SIGINT; a second signal ends them at once
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = values::duration)]
    pub(crate) shutdown_timeout: Duration,
}

impl Listening {
    /// What follows from these alone.
    pub(crate) fn options(&self) -> Options {
        let Self {
            socket_mode,
            socket_owner,
            allow,
            allow_users,
            max_connections,
            max_body,
            threads,
            shutdown_timeout,
        } = self;
        let mut options = Options::default();
        options.listen.socket_mode = *socket_mode;
        options.listen.socket_owner = (socket_owner.map(|(user, _)| user), socket_owner.and_then(|(_, group)| group));
        options.threads = *threads;
        if !allow.is_empty() {
            options.fastcgi.allow.clone_from(allow);
        }
        options.fastcgi.allow_uids.clone_from(allow_users);
        options.fastcgi.max_connections = *max_connections;
        options.fastcgi.shutdown_timeout = *shutdown_timeout;
        options.http.max_connections = *max_connections;
        options.http.shutdown_timeout = *shutdown_timeout;
        options.http.max_body = *max_body;
        options.http.errors = Errors::new(Arc::new(Tracing));
        options
    }
}

impl Arguments {
    pub(crate) fn options(&self) -> Options {
        let mut options = self.listening.options();
        // Routes are looked for in PATH_INFO, where the stock parameters of web servers have no path.
        let routed = (!self.routes.is_empty()).then(Vec::new);
        options.fastcgi.script_name = self.script_name.clone().map(String::into_bytes).or(routed);
        options.http.script_name = self.script_name.clone().map(String::into_bytes);
        options
    }
}

fn parse_owner(text: &str) -> Result<(u32, Option<u32>), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let identity = Identity::of_names(user, group).map_err(|error| format!("{error}"))?;
    Ok((identity.uid, group.map(|_| identity.gid)))
}

fn parse_user(text: &str) -> Result<u32, String> {
    Identity::of_names(text, None).map(|identity| identity.uid).map_err(|error| error.to_string())
}

/// What applications and the HTTP gateway have to say about a request, as part of the tool's log.
struct Tracing;

impl Log for Tracing {
    fn write(&self, text: &[u8]) {
        for line in String::from_utf8_lossy(text).lines() {
            tracing::warn!("{line}");
        }
    }
}
