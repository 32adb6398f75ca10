//! The options of FastCGI servers and programs and of HTTP servers, and the upstreams' settings that are made of them.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use gatespan::address::{Address, Endpoint};
use gatespan::protocol::fastcgi::Role;
use gatespan::upstream::{fastcgi, http};

use super::scripts::RequestBody;
use super::{OnOff, set};
use crate::bridge::{Arguments, target};
use crate::values;

#[derive(Debug, Args)]
#[command(next_help_heading = "Servers (fastcgi:, http:, https:)")]
pub(crate) struct Servers {
    /// A further FastCGI server that answers for TO; each request goes to the one with the fewest. May be repeated
    #[arg(long = "also", value_name = "fastcgi:…", value_parser = parse_also)]
    pub(crate) also: Vec<Endpoint>,
    /// Whether connections are kept for further requests [default: on for http:, off for fastcgi:, where a kept connection may occupy a process]
    #[arg(long, value_name = "WHETHER", value_enum)]
    pub(crate) keep_alive: Option<OnOff>,
    /// Connections that are kept without a request, to each server [default: 32 for fastcgi:, 64 for http:]
    #[arg(long, value_name = "NUMBER")]
    pub(crate) pool_size: Option<usize>,
    /// How long they are kept [default: 10s for fastcgi:, 60s for http:]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) idle_time: Option<Duration>,
    /// Connections with a request at once, to each server; further requests wait [default: 256 for fastcgi:, 1024 for http:]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    pub(crate) max_connections_to: Option<usize>,
    /// How long a connection may take to be made; then another server is asked, or it is 504 [default: 5s]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) connect_timeout: Option<Duration>,
    /// Share a connection between so many requests, where a FastCGI server says that it takes that [default: one request at a time]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(2..))]
    pub(crate) multiplex: Option<u16>,
    /// What a FastCGI server is asked to be: a responder; an authorizer, whose verdict is then the answer; or a filter, which also gets the file of a
    /// site that it is to filter [default: what the web server asks for, and a responder where none does]
    #[arg(long, value_name = "ROLE", value_enum)]
    pub(crate) role: Option<RoleAsked>,
    /// Set a param for FastCGI servers, besides or in the place of what the request, or its site, says. May be repeated
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = values::variable)]
    pub(crate) params: Vec<(OsString, OsString)>,
    /// What an HTTP server is told of the client: nothing, X-Forwarded-For, -Proto, -Host and -Port, or Forwarded (RFC 7239) [default: x]
    #[arg(long, value_name = "FIELDS", value_enum)]
    pub(crate) forwarded: Option<ClientFields>,
    /// The Host that an HTTP server is told: the client's, the server's own, or this one [default: client]
    #[arg(long, value_name = "client|target|NAME", value_parser = parse_host)]
    pub(crate) host: Option<http::HostField>,
    /// The path that an HTTP server is asked for: the whole of it, or what comes after a --route's prefix or --script-name [default: whole]
    #[arg(long, value_name = "WHICH", value_enum)]
    pub(crate) path: Option<PathSent>,
    /// What this bridge calls itself in Via, in requests to HTTP servers and in their answers, or off [default: gatespan]
    #[arg(long, value_name = "NAME|off")]
    pub(crate) via: Option<String>,
    /// How long nothing may pass either way where a client and an HTTP server speak WebSocket [default: 5m]
    #[arg(long, value_name = "TIME", value_parser = values::duration)]
    pub(crate) tunnel_timeout: Option<Duration>,
    /// The certificates that an https: server's must come from, in a file of PEM [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    pub(crate) ca_file: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RoleAsked {
    Responder,
    Authorizer,
    Filter,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ClientFields {
    Off,
    X,
    Forwarded,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum PathSent {
    Whole,
    Rest,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "FastCGI programs (fastcgi:exec:)")]
pub(crate) struct Programs {
    /// Processes of each program; each serves a request at a time [default: one for each processor]
    #[arg(long, value_name = "NUMBER", value_parser = values::at_least_one)]
    pub(crate) workers: Option<usize>,
    /// After how many requests a process is replaced [default: never]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) max_requests: Option<u64>,
}

fn parse_also(text: &str) -> Result<Endpoint, String> {
    match target::parse(text)? {
        Address::FastCgi(endpoint) => Ok(endpoint),
        _ => Err(format!("expected a further FastCGI server, such as fastcgi:/run/app2.sock, got \"{text}\"")),
    }
}

fn parse_host(text: &str) -> Result<http::HostField, String> {
    match text {
        "client" => Ok(http::HostField::Client),
        "target" => Ok(http::HostField::Target),
        name if !name.is_empty()
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte)) =>
        {
            Ok(http::HostField::Named(name.into()))
        }
        _ => Err(format!("expected client, target or the name of a host, got \"{text}\"")),
    }
}

impl Arguments {
    pub(crate) fn fastcgi_config(&self) -> fastcgi::Config {
        let mut config = fastcgi::Config::default();
        let (servers, bodies, times, numbers) = (&self.servers, &self.bodies, &self.times, &self.numbers);
        config.role = servers.role.map(|role| match role {
            RoleAsked::Responder => Role::Responder,
            RoleAsked::Authorizer => Role::Authorizer,
            RoleAsked::Filter => Role::Filter,
        });
        if let Some(keep_alive) = servers.keep_alive {
            config.keep_alive = keep_alive == OnOff::On;
        }
        set(&mut config.idle, servers.pool_size);
        set(&mut config.idle_time, servers.idle_time);
        set(&mut config.connections, servers.max_connections_to);
        set(&mut config.connect_timeout, servers.connect_timeout);
        if let Some(how) = bodies.request_body {
            config.request_body = match how {
                RequestBody::Spool => fastcgi::RequestBody::Spool,
                RequestBody::Stream => fastcgi::RequestBody::Stream,
            };
        }
        set(&mut config.spool_limit, bodies.spool_limit);
        set(&mut config.spool_memory, bodies.spool_memory);
        set(&mut config.head_timeout, times.head_timeout);
        set(&mut config.read_timeout, times.read_timeout);
        config.timeout = times.timeout;
        set(&mut config.queue, numbers.queue);
        set(&mut config.queue_wait, numbers.queue_wait);
        config.stderr_to_client_server = self.scripts.stderr_to_server;
        config
    }

    pub(crate) fn params(&self) -> Vec<(Vec<u8>, Vec<u8>)> {
        let bytes = |text: &OsString| text.as_bytes().to_vec();
        self.servers.params.iter().map(|(name, value)| (bytes(name), bytes(value))).collect()
    }

    pub(crate) fn http_config(&self) -> http::Config {
        let mut config = http::Config::default();
        let (servers, times, numbers) = (&self.servers, &self.times, &self.numbers);
        set(&mut config.host, servers.host.clone());
        if let Some(path) = servers.path {
            config.path = match path {
                PathSent::Whole => http::TargetPath::Whole,
                PathSent::Rest => http::TargetPath::PathInfo,
            };
        }
        if let Some(forwarded) = servers.forwarded {
            config.forwarded = match forwarded {
                ClientFields::Off => http::ForwardedFields::Off,
                ClientFields::X => http::ForwardedFields::XForwarded,
                ClientFields::Forwarded => http::ForwardedFields::Forwarded,
            };
        }
        if let Some(name) = &servers.via {
            config.via = (name != "off").then(|| name.clone());
        }
        set(&mut config.tunnel_timeout, servers.tunnel_timeout);
        config.trusted = self.clients.trusted();
        set(&mut config.idle, servers.pool_size);
        if servers.keep_alive == Some(OnOff::Off) {
            config.idle = 0;
        }
        set(&mut config.idle_time, servers.idle_time);
        set(&mut config.connections, servers.max_connections_to);
        set(&mut config.connect_timeout, servers.connect_timeout);
        set(&mut config.head_timeout, times.head_timeout);
        set(&mut config.read_timeout, times.read_timeout);
        config.timeout = times.timeout;
        set(&mut config.queue, numbers.queue);
        set(&mut config.queue_wait, numbers.queue_wait);
        config.ca_file.clone_from(&servers.ca_file);
        config
    }

    /// How a program is kept running; the program itself is the target's affair.
    pub(crate) fn program_config(&self) -> fastcgi::ProgramConfig {
        let mut config = fastcgi::ProgramConfig::new("");
        set(&mut config.workers, self.programs.workers);
        config.max_requests = self.programs.max_requests;
        config.environment.clone_from(&self.scripts.env);
        config.pass_environment.clone_from(&self.scripts.pass_env);
        set(&mut config.kill_grace, self.times.kill_grace);
        config.drain = self.listening.shutdown_timeout;
        config
    }
}
