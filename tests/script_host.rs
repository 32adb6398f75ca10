//! The host of CGI programs as people use it: `gatespan bridge` behind nginx, Apache and lighttpd, and with its own HTTP server, with
//! programs in six languages and with programs that misbehave. fcgiwrap passes through the same table in script_fcgiwrap.rs.
#![cfg(feature = "cli")]

mod support;

use support::scripts::{self, Host, Pass, Socket};
use support::{Front, script_scenes};

const OURS: Host = Host::Gatespan(&["--kill-grace", "500ms"]);

/// The table, and then the scenes.
async fn everything(front: &Front) {
    scripts::rows(front).await;
    script_scenes::scenes(front).await;
}

fn nginx_closed() -> Front {
    scripts::nginx(
        "gatespan/nginx/unix/closed/streamed",
        OURS,
        Socket::Unix,
        "nginx/scripts_closed.conf",
        Pass::AnswersStreamed,
    )
}

fn nginx_kept() -> Front {
    scripts::nginx("gatespan/nginx/tcp/kept/buffered", OURS, Socket::Tcp, "nginx/scripts_kept.conf", Pass::Collected)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_closed_each_time() {
    everything(&nginx_closed()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_nginx_kept_and_buffered() {
    everything(&nginx_kept()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_apache() {
    everything(&scripts::apache("gatespan/apache/unix", OURS, Socket::Unix)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_lighttpd_streaming() {
    everything(&scripts::lighttpd("gatespan/lighttpd/streamed", OURS, "2")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_lighttpd_collecting() {
    everything(&scripts::lighttpd("gatespan/lighttpd/collected", OURS, "0")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn behind_its_own_http_server() {
    everything(&scripts::http("gatespan/http", &["--kill-grace", "500ms"])).await;
}

/// With limits that scripts may run into on purpose.
const SHORT: Host = Host::Gatespan(&["--head-timeout", "3s", "--read-timeout", "3s", "--kill-grace", "200ms"]);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scripts_that_take_too_long_are_ended_behind_every_front() {
    let [closed, kept] = ["scripts_closed", "scripts_kept"].map(|fixture| format!("nginx/{fixture}.conf"));
    let fronts = [
        scripts::nginx("gatespan/nginx/unix/closed/streamed", SHORT, Socket::Unix, &closed, Pass::AnswersStreamed),
        scripts::nginx("gatespan/nginx/tcp/kept/buffered", SHORT, Socket::Tcp, &kept, Pass::Collected),
        scripts::apache("gatespan/apache/unix", SHORT, Socket::Unix),
        scripts::lighttpd("gatespan/lighttpd/streamed", SHORT, "2"),
        scripts::lighttpd("gatespan/lighttpd/collected", SHORT, "0"),
        scripts::http("gatespan/http", &["--head-timeout", "3s", "--read-timeout", "3s", "--kill-grace", "200ms"]),
    ];
    futures_util::future::join_all(fronts.iter().map(script_scenes::too_late)).await;
}
