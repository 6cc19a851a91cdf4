"""Makes the files of a release: wheel, sources, SBOM (software bill of materials) and checksums. Not installed."""
