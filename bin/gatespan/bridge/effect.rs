//! Which options have an effect for which targets. One that has none for those that were named is refused: somebody counts on it.

use gatespan::address::Address;

use super::options::OnOff;
use super::options::servers::RoleAsked;
use super::{Arguments, UsageError};

/// What a target is, as far as options differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Scripts,
    FastCgi,
    Program,
    Http,
    Https,
    Folder,
    /// A FastCGI target with the folder of its site.
    Site,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Scripts => "cgi:",
            Self::FastCgi => "fastcgi:",
            Self::Program => "fastcgi:exec:",
            Self::Http => "http:",
            Self::Https => "https:",
            Self::Folder => "file:",
            Self::Site => "fastcgi: with --root",
        }
    }
}

const SERVERS: &[Kind] = &[Kind::FastCgi, Kind::Http, Kind::Https];
const FORWARDED: &[Kind] = &[Kind::FastCgi, Kind::Program, Kind::Http, Kind::Https];
const TIMED: &[Kind] = &[Kind::Scripts, Kind::FastCgi, Kind::Program, Kind::Http, Kind::Https];
const SPOOLED: &[Kind] = &[Kind::Scripts, Kind::FastCgi, Kind::Program];
const PROCESSES: &[Kind] = &[Kind::Scripts, Kind::Program];
const SCRIPTS: &[Kind] = &[Kind::Scripts];
const HTTP: &[Kind] = &[Kind::Http, Kind::Https];
const SITE: &[Kind] = &[Kind::Site];
const FILES: &[Kind] = &[Kind::Folder, Kind::Site];

impl Arguments {
    fn kinds(&self) -> Vec<Kind> {
        let mut kinds: Vec<Kind> = self
            .targets()
            .filter_map(|to| match to {
                Address::Cgi(_) => Some(Kind::Scripts),
                Address::FastCgi(_) => Some(Kind::FastCgi),
                Address::FastCgiProgram(_) => Some(Kind::Program),
                Address::Http(_) => Some(Kind::Http),
                Address::Https(_) => Some(Kind::Https),
                Address::File(_) => Some(Kind::Folder),
                _ => None,
            })
            .collect();
        if self.has_site() {
            kinds.push(Kind::Site);
        }
        kinds
    }

    /// Refuses options without effect.
    pub(super) fn check_effects(&self) -> Result<(), UsageError> {
        let (scripts, servers, sites, times) = (&self.scripts, &self.servers, &self.sites, &self.times);
        let (numbers, limits, bodies) = (&self.numbers, &self.limits, &self.bodies);
        let options: [(&str, bool, &[Kind]); 53] = [
            ("--root", !scripts.roots.is_empty(), &[Kind::Scripts, Kind::FastCgi, Kind::Program]),
            ("--index", !scripts.index.is_empty(), &[Kind::Scripts, Kind::Folder, Kind::Site]),
            ("--interpreter", !scripts.interpreters.is_empty(), SCRIPTS),
            ("--env", !scripts.env.is_empty(), PROCESSES),
            ("--pass-env", !scripts.pass_env.is_empty(), PROCESSES),
            ("--user", scripts.user.is_some(), SCRIPTS),
            ("--group", scripts.group.is_some(), SCRIPTS),
            ("--isindex", scripts.isindex, SCRIPTS),
            ("--stderr-to-server", scripts.stderr_to_server, SPOOLED),
            ("--debug", scripts.debug, SCRIPTS),
            ("--request-body", bodies.request_body.is_some(), SPOOLED),
            ("--spool-limit", bodies.spool_limit.is_some(), SPOOLED),
            ("--spool-memory", bodies.spool_memory.is_some(), SPOOLED),
            ("--head-timeout", times.head_timeout.is_some(), TIMED),
            ("--read-timeout", times.read_timeout.is_some(), TIMED),
            ("--timeout", times.timeout.is_some(), TIMED),
            ("--kill-grace", times.kill_grace.is_some(), PROCESSES),
            ("--kill-leftovers", times.kill_leftovers, SCRIPTS),
            ("--concurrent", numbers.concurrent.is_some(), SCRIPTS),
            ("--concurrent-per-script", numbers.concurrent_per_script.is_some(), SCRIPTS),
            ("--queue", numbers.queue.is_some(), TIMED),
            ("--queue-wait", numbers.queue_wait.is_some(), TIMED),
            ("--limit-cpu", limits.limit_cpu.is_some(), SCRIPTS),
            ("--limit-memory", limits.limit_memory.is_some(), SCRIPTS),
            ("--limit-files", limits.limit_files.is_some(), SCRIPTS),
            ("--limit-processes", limits.limit_processes.is_some(), SCRIPTS),
            ("--limit-file-size", limits.limit_file_size.is_some(), SCRIPTS),
            ("--keep-alive", servers.keep_alive.is_some(), FORWARDED),
            ("--pool-size", servers.pool_size.is_some(), FORWARDED),
            ("--idle-time", servers.idle_time.is_some(), FORWARDED),
            ("--max-connections-to", servers.max_connections_to.is_some(), SERVERS),
            ("--connect-timeout", servers.connect_timeout.is_some(), FORWARDED),
            ("--multiplex", servers.multiplex.is_some(), &[Kind::FastCgi]),
            ("--role", servers.role.is_some(), &[Kind::FastCgi, Kind::Program]),
            ("--param", !servers.params.is_empty(), &[Kind::FastCgi, Kind::Program]),
            ("--forwarded", servers.forwarded.is_some(), HTTP),
            ("--host", servers.host.is_some(), HTTP),
            ("--path", servers.path.is_some(), HTTP),
            ("--via", servers.via.is_some(), HTTP),
            ("--tunnel-timeout", servers.tunnel_timeout.is_some(), HTTP),
            ("--ca-file", servers.ca_file.is_some(), &[Kind::Https]),
            ("--workers", self.programs.workers.is_some(), &[Kind::Program]),
            ("--max-requests", self.programs.max_requests.is_some(), &[Kind::Program]),
            ("--try-files", sites.try_files.is_some(), SITE),
            ("--deny", !sites.deny.is_empty(), SITE),
            ("--script-ending", !sites.script_endings.is_empty(), SITE),
            ("--script-root", sites.script_root.is_some(), SITE),
            ("--listing", sites.listing, &[Kind::Folder]),
            ("--follow-links", sites.follow_links, FILES),
            ("--precompressed", !sites.precompressed.is_empty(), FILES),
            ("--cache-control", sites.cache_control.is_some(), FILES),
            // Who the client is can be of use to any target; whom to believe only where something is believed.
            (
                "--trusted-proxy without --resolve-client",
                !self.clients.trusted.is_empty() && self.clients.resolve_client.is_none(),
                HTTP,
            ),
            ("--pool-size with --keep-alive off", self.has_pool_of_none(), &[]),
        ];
        let kinds = self.kinds();
        for (name, is_given, wanted) in options {
            if is_given && !wanted.iter().any(|kind| kinds.contains(kind)) {
                let names: Vec<_> = wanted.iter().map(|kind| kind.name()).collect();
                return Err(UsageError(match &*names {
                    [] => format!("{name} has no effect"),
                    names => format!("{name} is for {} as a target, and none is named", names.join(", ")),
                }));
            }
        }
        let mistakes = [
            (
                !servers.also.is_empty() && !matches!(self.to, Address::FastCgi(_)),
                "--also is for a FastCGI server as TO, such as fastcgi:/run/app.sock",
            ),
            (
                (servers.role.is_some() || !servers.params.is_empty())
                    && !self.answering().any(|(_, to)| matches!(to, Address::FastCgi(_) | Address::FastCgiProgram(_))),
                "--role and --param are for fastcgi: as TO or in a --route",
            ),
            (
                servers.role == Some(RoleAsked::Filter)
                    && !self.has_site()
                    && !matches!(self.from, Address::FastCgi(_)),
                "--role filter is for fastcgi: with --root, whose files are filtered, or for fastcgi: FROM, where the web server sends them",
            ),
            (
                self.from == Address::CgiProcess && self.targets().any(|to| matches!(to, Address::FastCgiProgram(_))),
                "fastcgi:exec: is not for cgi: FROM, where it would be started anew for each request; start it once, by a bridge that listens",
            ),
            (
                self.clients.authorizers.iter().any(|(prefix, _)| {
                    prefix.as_ref().is_some_and(|prefix| !self.routes.iter().any(|(route, _)| route == prefix))
                }),
                "--authorizer /PREFIX=TO is for the prefix of a --route",
            ),
        ];
        match mistakes.into_iter().find(|(is_made, _)| *is_made) {
            Some((_, message)) => Err(UsageError(message.into())),
            None => Ok(()),
        }
    }

    fn has_pool_of_none(&self) -> bool {
        let servers = &self.servers;
        servers.keep_alive == Some(OnOff::Off) && (servers.pool_size.is_some() || servers.idle_time.is_some())
    }
}
