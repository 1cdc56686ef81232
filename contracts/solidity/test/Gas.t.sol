// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.30;

import {Strings} from "@openzeppelin/contracts/utils/Strings.sol";
import {JobsRegistry} from "../src/JobsRegistry.sol";
import {Designs} from "./Designs.sol";
import {Naive} from "./Naive.sol";
import {RegistryTest} from "./RegistryTest.sol";

/// @title What things cost, measured, and the page that says so
/// @notice Each call is a transaction of its own (isolated: base cost, calldata and cold storage
/// are in), as `GAS.md` has it. The test fails when that page is not what it measures;
/// `build.sh` writes the page.
/// forge-config: default.isolate = true
contract GasTest is RegistryTest {
    using Strings for uint256;

    string private constant PAGE = "GAS.md";
    /// @dev What one transaction may use since Fusaka (EIP-7825).
    uint256 private constant TRANSACTION_CAP = 1 << 24;
    /// @dev Batches before the first measured one: its slot, and the next few, are not new ones.
    uint256 private constant WARM_UP = 32;
    uint256 private constant MEASURED = 16;

    Designs private designs;
    /// @dev Jobs given to {designs}; each is new to it.
    uint256 private made;

    function setUp() public override {
        super.setUp();
        designs = new Designs();
    }

    function test_theGasPageIsTrue() public {
        string memory page = string.concat(head(), designTable(), callTable());
        if (vm.envOr("WRITE_GAS_TABLE", false)) vm.writeFile(PAGE, page);
        vm.assertTrue(
            keccak256(bytes(page)) == keccak256(bytes(vm.readFile(PAGE))),
            "GAS.md is not what is measured: run build.sh"
        );
    }

    function head() private pure returns (string memory) {
        return string.concat(
            "# What a confirmation costs\n\n",
            "Written by `build.sh` from `test/Gas.t.sol`, which fails when this page is not what",
            " it measures.\nGas of whole transactions under Prague's rules: base cost, calldata",
            " and cold storage included.\n\n"
        );
    }

    // The designs

    function designTable() private returns (string memory table) {
        uint256[5] memory sizes = [uint256(1), 5, 10, 100, 1000];
        table = string.concat(
            "## Designs\n\nGas per job when N jobs are confirmed.",
            " The first three send N transactions, the others one.\n",
            "A star marks a transaction above the 16,777,216 gas that one may use on mainnet.\n\n",
            "| design | N = 1 | 5 | 10 | 100 | 1,000 |\n|---|---:|---:|---:|---:|---:|\n"
        );
        string[7] memory names = [
            "event",
            "event + mapping",
            "event + struct",
            "loop: event",
            "loop: event + mapping",
            "loop: event + struct",
            "**JobsRegistry batch, 2 signatures**"
        ];
        uint256[5][7] memory cost;
        for (uint256 design = 0; design < names.length; ++design) {
            table = string.concat(table, "| ", names[design]);
            for (uint256 i = 0; i < sizes.length; ++i) {
                cost[design][i] = costOf(design, sizes[i]);
                bool tooDear = design > 2 && cost[design][i] * sizes[i] > TRANSACTION_CAP;
                table = string.concat(table, " | ", number(cost[design][i]), tooDear ? "*" : "");
            }
            table = string.concat(table, " |\n");
        }
        table = string.concat(table, "| saved by it against event + mapping");
        for (uint256 i = 0; i < sizes.length; ++i) {
            table = string.concat(table, " | ", percentSaved(cost[6][i], cost[1][i]));
        }
        table = string.concat(table, " |\n");
    }

    /// @dev Gas per job, rounded.
    function costOf(uint256 design, uint256 jobs) private returns (uint256 total) {
        if (design == 6) {
            total = batchGas(uint32(jobs));
        } else {
            uint256 transactions = design < 3 ? jobs : 1;
            for (uint256 i = 0; i < transactions; ++i) {
                total += designGas(design, jobs / transactions);
            }
        }
        return (total + jobs / 2) / jobs;
    }

    function designGas(uint256 design, uint256 jobs) private returns (uint256) {
        bytes32[] memory ids = new bytes32[](jobs);
        bytes32[] memory hashes = new bytes32[](jobs);
        for (uint256 i = 0; i < jobs; ++i) {
            ids[i] = keccak256(abi.encode("id", ++made));
            hashes[i] = keccak256(abi.encode("hash", made));
        }
        if (design == 0) designs.logOne(ids[0], hashes[0]);
        if (design == 1) designs.mapOne(ids[0], hashes[0]);
        if (design == 2) designs.structOne(ids[0], hashes[0]);
        if (design == 3) designs.logMany(ids, hashes);
        if (design == 4) designs.mapMany(ids, hashes);
        if (design == 5) designs.structMany(ids, hashes);
        return vm.lastCallGas().gasTotalUsed;
    }

    // The registry

    /// @dev The mean of consecutive batches, so that no lucky or unlucky position is shown.
    function batchGas(uint32 jobs) private returns (uint256 mean) {
        deploy(3, 2);
        for (uint256 i = 0; i < WARM_UP; ++i) {
            sealGas(jobs, 2);
        }
        for (uint256 i = 0; i < MEASURED; ++i) {
            mean += sealGas(jobs, 2);
        }
        mean /= MEASURED;
    }

    /// @dev A root is a root: what it costs does not depend on the tree below it.
    function sealGas(uint32 jobs, uint256 signers) private returns (uint256) {
        (, uint64 first,,,,) = registry.cursor();
        JobsRegistry.BatchConfirmation memory confirmation =
            next(jobs, keccak256(abi.encode(first)));
        bytes[] memory signatures = signed(confirmation, signers);
        registry.confirmBatch(confirmation, signatures);
        return vm.lastCallGas().gasTotalUsed;
    }

    function callTable() private returns (string memory table) {
        table = string.concat(
            "\n## Calls\n\nBatch number 34 of a registry: its slot in the range is not a new one.",
            " A new one costs 17,100 more,\nand batch 1, 2, 4, 8, 16 and so on need one.\n\n",
            "| call | gas |\n|---|---:|\n"
        );
        for (uint16 signers = 1; signers <= 5; ++signers) {
            table = row(
                table, string.concat("confirmBatch, ", signatures(signers)), confirmGas(signers)
            );
        }
        table = row(table, "confirmJob, 2 signatures", confirmJobGas());
        (uint256 verifyCost, uint256 grantCost) = proofGas();
        table = row(table, "verify as a transaction, 1,024 jobs, 33 batches", verifyCost);
        table = row(table, "grantAccess, the same proof", grantCost);
    }

    function confirmGas(uint16 signers) private returns (uint256) {
        deploy(5, signers);
        for (uint256 i = 0; i < 33; ++i) {
            sealGas(1, signers);
        }
        return sealGas(1, signers);
    }

    function confirmJobGas() private returns (uint256) {
        deploy(3, 2);
        for (uint256 i = 0; i < 33; ++i) {
            sealGas(1, 2);
        }
        JobsRegistry.Leaf memory leaf = leafAt(34);
        bytes[] memory signatures = signed(next(1, registry.leafHash(leaf)), 2);
        confirmJob(leaf, 34, signatures);
        return vm.lastCallGas().gasTotalUsed;
    }

    function proofGas() private returns (uint256 verifyCost, uint256 grantCost) {
        deploy(3, 2);
        delete batches;
        delete commitments;
        confirm(1024);
        for (uint256 i = 0; i < 32; ++i) {
            confirm(1);
        }
        JobsRegistry.Leaf memory leaf = leafAt(500);
        bytes32[] memory jobProof = Naive.jobPath(trees[1], registry.leafHash(leaf));
        bytes32[] memory batchProof = Naive.path(commitments, 0);
        JobsRegistry.BatchRef memory batch = batches[0];
        // A plain call: one by the view's type would not be a transaction of its own.
        (bool done, bytes memory answer) = address(registry)
            .call(abi.encodeCall(registry.verify, (leaf, jobProof, batch, batchProof)));
        vm.assertTrue(done && abi.decode(answer, (bool)), "verifies");
        verifyCost = vm.lastCallGas().gasTotalUsed;
        vm.prank(SUBMITTER);
        registry.grantAccess(leaf, jobProof, batch, batchProof, address(0x6E));
        grantCost = vm.lastCallGas().gasTotalUsed;
    }

    // The page

    function row(string memory table, string memory name, uint256 gas)
        private
        pure
        returns (string memory)
    {
        return string.concat(table, "| ", name, " | ", number(gas), " |\n");
    }

    function signatures(uint256 count) private pure returns (string memory) {
        return string.concat(count.toString(), count == 1 ? " signature" : " signatures");
    }

    function percentSaved(uint256 cost, uint256 against) private pure returns (string memory) {
        if (cost >= against) return "none";
        uint256 tenths = 1000 - (cost * 1000 + against / 2) / against;
        return string.concat((tenths / 10).toString(), ".", (tenths % 10).toString(), " %");
    }

    /// @dev With commas between thousands.
    function number(uint256 value) private pure returns (string memory) {
        if (value < 1000) return value.toString();
        string memory rest = (value % 1000 + 1000).toString();
        bytes memory digits = bytes(rest);
        digits[0] = ",";
        return string.concat(number(value / 1000), string(digits));
    }
}
