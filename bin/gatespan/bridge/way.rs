//! The way of a request through the bridge, put together before anything listens: request id, client, access log, local redirects, what is asked
//! first, files that are sent by name, routes, and at its end the targets.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use gatespan::Application;
use gatespan::address::Address;
use gatespan::application::AnyApplication;
use gatespan::middleware::{
    self, Format, Mount, Redirects, SendFileRoots, access_log, authorizer, local_redirect, request_id, send_file,
    to_writer,
};
use gatespan::upstream::cgi;
use gatespan::upstream::cgi::spawn::close_on_exec_all;
use gatespan::upstream::watcher::Watcher;

use super::Arguments;
use super::log_file::LogFile;
use super::options::OnOff;
use super::options::scripts::Files;
use super::target::{self, Beside, Settings};
use super::told::told;
use crate::logging::Form;

/// What is there before anything listens.
pub(super) struct Prepared {
    pub(super) application: AnyApplication,
    /// The file of the access log.
    pub(super) log: Option<LogFile>,
    pub(super) hosts: Vec<Arc<cgi::Host>>,
}

/// What is to be done before there is a thread that answers requests.
pub(super) fn prepare(arguments: &Arguments, form: Form, running: &target::Running) -> anyhow::Result<Prepared> {
    arguments.check()?;
    arguments.check_effects()?;
    arguments.check_roots()?;
    let has_scripts = arguments.targets().any(|to| matches!(to, Address::Cgi(_)));
    let has_programs = arguments.targets().any(|to| matches!(to, Address::FastCgiProgram(_)));
    let mut config = arguments.cgi_config()?;
    let as_root = rustix::process::geteuid().is_root() && config.identity.is_none();
    if has_scripts || has_programs {
        // What whoever started this process left open is not for scripts.
        close_on_exec_all()
            .context("the descriptors that this process was started with could not be kept from scripts")?;
    }
    // To find out how many processors there are takes a CGI program's time.
    let mut program = has_programs.then(|| arguments.program_config());
    if has_scripts || has_programs {
        let watcher = Watcher::start().context("the process that watches over scripts could not be started")?;
        if let Some(program) = &mut program {
            program.watcher = Some(watcher.clone());
        }
        config.watcher = Some(watcher);
    }
    let settings = target::Settings {
        cgi: config,
        fastcgi: arguments.fastcgi_config(),
        multiplex: arguments.servers.multiplex,
        params: arguments.params(),
        program,
        http: arguments.http_config(),
        files: arguments.files_config()?,
        site: arguments.site_config()?,
        running: running.clone(),
        hosts: RefCell::default(),
    };
    let mut application = arguments.open_all(&settings)?;
    if has_scripts && as_root && arguments.from != Address::CgiProcess {
        tracing::warn!("scripts run as root, which few of them need: name somebody else with --user");
    }
    let Files { send_file_roots, accel_roots } = &arguments.files;
    if !send_file_roots.is_empty() || !accel_roots.is_empty() {
        let roots = SendFileRoots { files: send_file_roots.clone(), accel: accel_roots.clone() };
        application = AnyApplication::new(send_file(application, &roots)?);
    }
    for (_, to) in arguments.clients.authorizers.iter().filter(|(prefix, _)| prefix.is_none()) {
        application = arguments.asking_first(application, to, &settings)?;
    }
    let redirects = Redirects { max: arguments.max_redirects, mount: arguments.mount() };
    let redirecting = local_redirect(application, redirects);
    let log = arguments.log.access_log.as_deref().map(open_log).transpose()?;
    let client_address = arguments.clients.client_address();
    // The web server's log is not this process's, where failures are to be found as well.
    let is_told = matches!(arguments.from, Address::FastCgi(_));
    let application = if log.is_none() && client_address.is_none() && !is_told {
        // Nothing in between: one future for both.
        named(redirecting, arguments.log.request_id)
    } else {
        let mut application = AnyApplication::new(redirecting);
        if let Some(log) = &log {
            let format = match form {
                Form::Text => Format::Traced,
                Form::Json => Format::Json,
            };
            application = AnyApplication::new(access_log(application, format, to_writer(log.clone())));
        }
        if let Some(config) = client_address {
            application = AnyApplication::new(middleware::client_address(application, config));
        }
        if is_told {
            application = AnyApplication::new(told(application));
        }
        named(application, arguments.log.request_id)
    };
    Ok(Prepared { application, log, hosts: settings.hosts.into_inner() })
}

fn open_log(path: &Path) -> anyhow::Result<LogFile> {
    LogFile::open(path).with_context(|| format!("{}: the access log could not be opened", path.display()))
}

/// The application with its requests' ids.
fn named(application: impl Application, in_response: OnOff) -> AnyApplication {
    let named = request_id(application);
    AnyApplication::new(match in_response {
        OnOff::On => named,
        OnOff::Off => named.without_response_header(),
    })
}

impl Arguments {
    /// The application, behind an authorizer.
    fn asking_first(
        &self,
        application: AnyApplication,
        to: &Address,
        settings: &Settings,
    ) -> anyhow::Result<AnyApplication> {
        let beside = Beside { script_roots: self.script_roots(None), is_asked: true, ..Beside::default() };
        let asked = target::open(to, beside, settings)?;
        Ok(AnyApplication::new(authorizer(application, asked, self.clients.authorizer())))
    }

    /// TO, and the routes in front of it.
    fn open_all(&self, settings: &Settings) -> anyhow::Result<AnyApplication> {
        let beside = |prefix, to| Beside {
            root: self.site_root(prefix, to),
            script_roots: self.script_roots(Some(prefix)),
            ..Beside::default()
        };
        let first = Beside { also: &self.servers.also, ..beside("", &self.to) };
        let application = target::open(&self.to, first, settings)?;
        if self.routes.is_empty() {
            return Ok(application);
        }
        let mut mount = Mount::new().fallback(application);
        for (prefix, to) in &self.routes {
            let mut application = target::open(to, beside(prefix, to), settings)?;
            for (_, to) in self.clients.authorizers.iter().filter(|(at, _)| at.as_ref() == Some(prefix)) {
                application = self.asking_first(application, to, settings)?;
            }
            mount = mount.at(prefix, application);
        }
        Ok(AnyApplication::new(mount))
    }

    /// What is SCRIPT_NAME for the application as a whole, where that is known.
    fn mount(&self) -> Option<Vec<u8>> {
        match (&self.from, &self.script_name) {
            (_, Some(prefix)) => Some(prefix.clone().into_bytes()),
            // A web server may say there which script it has found.
            (Address::FastCgi(_), None) => Some(Vec::new()),
            _ => None,
        }
    }
}
