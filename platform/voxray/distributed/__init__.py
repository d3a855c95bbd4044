"""What runs on Ray: joining a cluster, work spread over it, trainings and their patches; and MLflow."""
