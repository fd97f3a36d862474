"""What checks the manifests of k8s/, and what runs them on this machine."""
