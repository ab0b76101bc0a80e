//! Files that can't be used: each is refused with the file's name, a line, a column, the line itself and what to do, before
//! anything is asked of an agent.

use std::path::{Path, PathBuf};

use super::{check, ctl};

struct Files(tempfile::TempDir);

impl Files {
    fn write(&self, name: &str, bytes: &[u8]) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, bytes).expect("written");
        path.to_str().expect("text").to_owned()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_file_is_told_with_its_place() {
    let files = Files(tempfile::tempdir().expect("directory"));
    let run = async |arguments: &[&str]| {
        ctl(Path::new("/nonexistent/admin.sock"), arguments).output().await.expect("run")
    };
    let good = files.write(
        "good.cedar",
        b"@id(\"a\")\npermit (principal, action == Action::\"http\", resource in HostSet::\"x\");\n",
    );
    let idp = "issuer = \"https://idp.test\"\naudiences = [\"g\"]\nalgorithms = [\"RS256\"]\n[mapping]\nagent = { from = \"sub\" }\n";
    let settings = files.write("idp.toml", idp.as_bytes());
    let set = |settings: &str, keys: &str| {
        ["issuer", "set", "x", "--settings", settings, "--keys", keys].map(str::to_owned)
    };
    let checked = |policy: &str| ["policy", "check", policy].map(str::to_owned).to_vec();
    let with_sets = |sets: &str| ["policy", "check", &good, "--sets", sets].map(str::to_owned).to_vec();
    let jwks = files.write("jwks.json", b"{\"keys\": []}");
    let torn = files.write("torn.json", b"{\"keys\": [\n {\"kty\": \"RSA\", ]}");
    for (arguments, place, said) in [
        (
            checked(&files.write("l1.cedar", b"@id(\"a\")\n// \xff\npermit")),
            "l1.cedar:2:4: ",
            "save the file as UTF-8",
        ),
        (checked(&files.write("p.cedar", b"@id(\"a\") permit (principal")), "p.cedar:1:27: ", "expected"),
        (
            with_sets(&files.write("s.toml", b"[hosts]\nx = [\"a.test\", 5]\n")),
            "s.toml:2:16: ",
            "expected a string",
        ),
        (
            with_sets(&files.write("t.toml", b"[hosts]\nx = [\"a.test\",\n \"b c\"]\n")),
            "t.toml:3:2: ",
            "`b c` is not a host",
        ),
        (
            with_sets(
                &files.write("n.toml", b"[hosts]\nx = [\"a.test\"]\n[networks]\nn = [\"10.0.0.1/8\"]\n"),
            ),
            "n.toml:4:6: ",
            "write `10.0.0.0/8`",
        ),
        (set(&settings, &torn).to_vec(), "torn.json:2:17: ", "this is not JSON"),
        (
            set(&files.write("a.toml", idp.replace("RS256", "HS256").as_bytes()), &jwks).to_vec(),
            "a.toml:3:15: ",
            "unknown variant `HS256`",
        ),
        (
            set(&files.write("b.toml", idp.replace("audiences", "audience").as_bytes()), &jwks).to_vec(),
            "b.toml:2:1: ",
            "unknown field `audience`",
        ),
        (set(&files.write("c.toml", b"issuer = \n"), &jwks).to_vec(), "c.toml:1:", ""),
    ] {
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let refused = run(&arguments).await;
        for part in [place, said, "^"] {
            check(&refused, 1, "", part);
        }
    }
}
