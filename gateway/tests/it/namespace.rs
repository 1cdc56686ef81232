//! Processes that see another file system than everybody else: in a mount namespace of their own,
//! which the kernel undoes with the last of them. It takes root.

use std::{
    fs::{self, File},
    io::{ErrorKind, Write as _},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Duration,
};

use ops::testing::{TestProcess, eventually};

/// A disk that is small and real, and there for the processes that are started on it only.
pub(crate) struct Disk {
    /// Keeps the namespace while no other process is in it.
    holder: TestProcess,
    folder: tempfile::TempDir,
}

impl Disk {
    /// A disk of so many KiB.
    pub(crate) async fn start(kib: u32) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mount = "mount -t tmpfs -o size=$0k tmpfs \"$1\" && touch \"$1/up\" && exec sleep 3600";
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", mount, &kib.to_string()]);
        command.arg(folder.path()).stdin(Stdio::null());
        let holder = TestProcess::start(&mut command);
        let disk = Self { holder, folder };
        let up = disk.inside().join("up");
        let mounted = async || fs::remove_file(&up).ok();
        eventually("the disk is there", Duration::from_secs(10), mounted).await;
        disk
    }

    /// Where it is for processes on it.
    pub(crate) fn path(&self) -> &Path {
        self.folder.path()
    }

    /// `command`, as a process on it.
    pub(crate) fn command(&self, command: &Command) -> Command {
        let namespace = format!("--mount=/proc/{}/ns/mnt", self.holder.id());
        let mut entering = Command::new("nsenter");
        entering.args([&namespace, "--"]);
        over(entering, command)
    }

    /// Takes all the room there is.
    pub(crate) fn fill(&self) {
        let mut ballast = File::create(self.ballast()).unwrap();
        for size in [64 * 1_024, 1] {
            let full = loop {
                if let Err(cause) = ballast.write(&vec![1; size]) {
                    break cause;
                }
            };
            assert_eq!(full.kind(), ErrorKind::StorageFull);
        }
    }

    /// Gives it back.
    pub(crate) fn clear(&self) {
        fs::remove_file(self.ballast()).unwrap();
    }

    fn ballast(&self) -> PathBuf {
        self.inside().join("ballast")
    }

    /// Where it is for us.
    fn inside(&self) -> PathBuf {
        let root = PathBuf::from(format!("/proc/{}/root", self.holder.id()));
        root.join(self.folder.path().strip_prefix("/").unwrap())
    }
}

/// `command`, for which the names and addresses of `hosts` are the only ones there are without DNS.
pub(crate) fn with_hosts(hosts: &Path, command: &Command) -> Command {
    let mount = "mount --bind \"$0\" /etc/hosts && exec \"$@\"";
    let mut entering = Command::new("unshare");
    entering.args(["--mount", "sh", "-c", mount]).arg(hosts);
    over(entering, command)
}

/// `command`, run by `other`, which becomes it.
fn over(mut other: Command, command: &Command) -> Command {
    other.arg(command.get_program()).args(command.get_args());
    let set = command.get_envs();
    other.envs(set.filter_map(|(name, value)| Some((name, value?))));
    other.stdin(Stdio::null());
    other
}
