//! Keys: the attesters that sign for a batch (EIP-712), and the gas key that pays for it. They
//! differ, so that a leaked gas key can forge nothing.

use std::path::Path;

use alloy::{
    primitives::{Address, B256},
    signers::{SignerSync as _, local::PrivateKeySigner},
};
use anyhow::Context as _;
use contracts::registry::BatchConfirmation;
use secrecy::{ExposeSecret as _, SecretString};

/// Most attester keys of one process.
const ATTESTERS_MAX: usize = 32;

/// The attester keys of this process, by address ascending.
#[derive(Debug)]
pub struct Attesters(Vec<PrivateKeySigner>);

/// One attester's word for a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    /// Whose it is.
    pub signer: Address,
    /// `r ‖ s ‖ v`, v 27 or 28.
    pub bytes: [u8; 65],
}

impl Attesters {
    /// The keys in `path`, one a line.
    ///
    /// # Errors
    /// When the file cannot be read or a line is no key; no line is ever repeated.
    pub fn from_file(path: &Path) -> anyhow::Result<Self> {
        let mut keys = keys(path)?;
        let number = keys.len();
        anyhow::ensure!(
            number <= ATTESTERS_MAX,
            "{number} keys, at most {ATTESTERS_MAX}"
        );
        keys.sort_by_key(PrivateKeySigner::address);
        keys.dedup_by_key(|key| key.address());
        anyhow::ensure!(keys.len() == number, "{} names a key twice", path.display());
        Ok(Self(keys))
    }

    /// Their addresses, ascending.
    #[must_use]
    pub fn addresses(&self) -> Vec<Address> {
        self.0.iter().map(PrivateKeySigner::address).collect()
    }

    /// The word of the first `threshold` attesters among `allowed`, in the contract's order;
    /// `None` when there are not so many.
    #[must_use]
    pub fn sign(
        &self,
        confirmation: &BatchConfirmation,
        chain_id: u64,
        registry: Address,
        allowed: &[Address],
        threshold: usize,
    ) -> Option<Vec<Signature>> {
        let digest = confirmation.digest(chain_id, registry);
        let signatures: Vec<Signature> = self
            .0
            .iter()
            .filter(|key| allowed.contains(&key.address()))
            .take(threshold)
            .map(|key| Signature {
                signer: key.address(),
                bytes: sign(key, digest),
            })
            .collect();
        (signatures.len() == threshold).then_some(signatures)
    }
}

/// The gas key in `path`, its only line.
///
/// # Errors
/// When the file cannot be read or does not hold exactly one key; its content is never repeated.
pub fn gas_key(path: &Path) -> anyhow::Result<PrivateKeySigner> {
    let [key] = keys(path)?
        .try_into()
        .map_err(|_| anyhow::anyhow!("{} must hold exactly one key", path.display()))?;
    Ok(key)
}

fn sign(key: &PrivateKeySigner, digest: B256) -> [u8; 65] {
    key.sign_hash_sync(&digest)
        .expect("a local key signs every hash")
        .as_bytes()
}

fn keys(path: &Path) -> anyhow::Result<Vec<PrivateKeySigner>> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("read the keys in {}", path.display()))?;
    let text = SecretString::from(text);
    let lines = text.expose_secret().lines().map(str::trim).enumerate();
    let keys: Vec<PrivateKeySigner> = lines
        .filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        .map(|(number, line)| {
            // The parser's own error may quote what it was given.
            let key = line.parse::<PrivateKeySigner>().map_err(drop);
            key.map_err(|()| {
                anyhow::anyhow!("{} line {}: not a private key", path.display(), number + 1)
            })
        })
        .collect::<anyhow::Result<_>>()?;
    anyhow::ensure!(!keys.is_empty(), "{} holds no key", path.display());
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use alloy::primitives::Signature as EcdsaSignature;

    use super::*;

    fn file(lines: &[&str]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.join("\n").as_bytes()).unwrap();
        file
    }

    fn three() -> Attesters {
        let lines: Vec<String> = (1..=3).map(|byte| format!("0x{byte:064x}")).collect();
        let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
        Attesters::from_file(file(&lines).path()).unwrap()
    }

    #[test]
    fn signatures_come_in_the_contracts_order_and_recover() {
        let attesters = three();
        let confirmation = BatchConfirmation {
            batchNumber: 1,
            firstSequence: 1,
            jobCount: 1,
            jobsRoot: B256::repeat_byte(5),
            signerEpoch: 4,
        };
        let registry = Address::repeat_byte(9);
        let all = attesters.addresses();
        let signed = attesters.sign(&confirmation, 1, registry, &all, 2).unwrap();
        assert!(signed.is_sorted_by(|a, b| a.signer < b.signer) && signed.len() == 2);
        for Signature { signer, bytes } in &signed {
            assert!(bytes[64] == 27 || bytes[64] == 28);
            let digest = confirmation.digest(1, registry);
            let signature = EcdsaSignature::from_raw(bytes).unwrap();
            assert_eq!(
                signature.recover_address_from_prehash(&digest).unwrap(),
                *signer
            );
        }
        assert_eq!(
            attesters.sign(&confirmation, 1, registry, &all[..1], 2),
            None
        );
    }

    #[test]
    fn a_bad_file_is_refused_without_repeating_it() {
        let secret = format!("0x{:064x}", 7);
        for lines in [
            &[secret.as_str(), "0xnonsense"][..],
            &[&secret, &secret],
            &[],
        ] {
            let file = file(lines);
            let message = format!("{:#}", Attesters::from_file(file.path()).unwrap_err());
            assert!(
                !message.contains("nonsense") && !message.contains(&secret),
                "{message}"
            );
        }
        assert!(gas_key(file(&[&secret, &format!("0x{:064x}", 8)]).path()).is_err());
        assert!(gas_key(file(&["# comment", &secret, ""]).path()).is_ok());
    }
}
