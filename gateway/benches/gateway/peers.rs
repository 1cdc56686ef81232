//! What stands beside the gateway: the upstream of all, and the plain proxies it is compared with.

use std::{fs, net::SocketAddr, path::Path, process::Command};

use anyhow::Context as _;
use ops::testing::free_address;

use crate::process::Process;

/// What the upstream answers a GET with.
const JOB: &str = concat!(
    r#"{"job_id":"job_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a","status":"PROCESSING","#,
    r#""created_at":"2026-01-02T03:04:05.678901Z","updated_at":"2026-01-02T03:04:06.123456Z","#,
    r#""type":"digest","attempts":1,"result":null,"error":null,"#,
    r#""blockchain_confirmation":{"status":"NOT_REQUIRED"}}"#
);
/// And a POST.
const ACCEPTED: &str = concat!(
    r#"{"job_id":"job_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a","status":"PENDING","#,
    r#""created_at":"2026-01-02T03:04:05.678901Z","#,
    r#""estimated_completion":"2026-01-02T03:04:35.678901Z"}"#
);
/// Idle connections that each proxy keeps to the upstream: as many as the load has.
const POOL: usize = crate::load::CONNECTIONS * 2;

/// A process and where it listens.
pub(crate) struct Peer {
    pub(crate) process: Process,
    pub(crate) address: SocketAddr,
}

/// A light server that answers without looking: nginx, one worker.
pub(crate) async fn upstream(folder: &Path) -> anyhow::Result<Peer> {
    let server = format!(
        "location / {{ return 200 '{JOB}'; }}
    location = /v1/jobs {{
      add_header Location /v1/jobs/job_0197e2a04b7c7d3e8f5a6b7c8d9e0f1a always;
      return 202 '{ACCEPTED}';
    }}"
    );
    nginx("upstream", folder, "", &server).await
}

/// nginx as a proxy, one worker, connections to the upstream kept.
pub(crate) async fn nginx_proxy(folder: &Path, upstream: SocketAddr) -> anyhow::Result<Peer> {
    let pool = format!(
        "upstream behind {{
    server {upstream};
    keepalive {POOL};
    keepalive_requests 1000000000;
  }}"
    );
    let server = "location / {
      proxy_pass http://behind;
      proxy_http_version 1.1;
      proxy_set_header Connection \"\";
    }";
    nginx("nginx", folder, &pool, server).await
}

async fn nginx(
    name: &'static str,
    folder: &Path,
    pool: &str,
    server: &str,
) -> anyhow::Result<Peer> {
    let (address, home) = (free_address(), folder.join(name));
    fs::create_dir(&home)?;
    let temporary = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|kind| format!("{kind}_temp_path {kind};"))
        .join(" ");
    let text = format!(
        "daemon off;
worker_processes 1;
pid nginx.pid;
error_log error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  default_type application/json;
  keepalive_timeout 600s;
  keepalive_requests 1000000000;
  {temporary}
  {pool}
  server {{
    listen {address};
    {server}
  }}
}}
"
    );
    let file = home.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = Command::new("nginx");
    command.arg("-p").arg(&home).arg("-c").arg(&file);
    command.arg("-e").arg(home.join("error.log"));
    let process = Process::start(name, &mut command, address, folder).await?;
    Ok(Peer { process, address })
}

/// `HAProxy`, one thread.
pub(crate) async fn haproxy(folder: &Path, upstream: SocketAddr) -> anyhow::Result<Peer> {
    let address = free_address();
    let file = folder.join("haproxy.cfg");
    let text = format!(
        "global
  nbthread 1
  maxconn 1000
defaults
  mode http
  timeout connect 2s
  timeout client 600s
  timeout server 600s
  http-reuse always
frontend front
  bind {address}
  default_backend behind
backend behind
  server upstream {upstream}
"
    );
    fs::write(&file, text)?;
    let mut command = Command::new("haproxy");
    command.arg("-db").arg("-f").arg(&file);
    let process = Process::start("haproxy", &mut command, address, folder).await?;
    Ok(Peer { process, address })
}

/// Pingora without a policy: this program once more.
pub(crate) async fn bare(folder: &Path, upstream: SocketAddr) -> anyhow::Result<Peer> {
    let address = free_address();
    let mut command = Command::new(std::env::current_exe().context("our own binary")?);
    command.args(["bare", &address.to_string(), &upstream.to_string()]);
    let process = Process::start("bare", &mut command, address, folder).await?;
    Ok(Peer { process, address })
}
